//! Where microVMs run: on this machine's own KVM if it can run a stock kernel, else in the lab.

use std::env;

use anyhow::{Result, bail};

use crate::{probe, step};

/// Where microVMs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine's KVM.
    Machine,
    /// In the emulated machine.
    Lab,
}

/// Decides and says why. `KIAI_LAB=always|never` overrides what the probe finds.
pub(crate) fn choose() -> Result<Place> {
    let (place, why) = match env::var("KIAI_LAB").as_deref() {
        Ok("always") => (Place::Lab, "KIAI_LAB=always".to_owned()),
        Ok("never") => (Place::Machine, "KIAI_LAB=never".to_owned()),
        Ok(other) if !other.is_empty() => bail!("KIAI_LAB={other}: it is `always`, `never` or not set"),
        _ => match probe::probe() {
            Ok(()) => (Place::Machine, "its KVM runs 64-bit kernel code".to_owned()),
            Err(unusable) => (Place::Lab, unusable.to_string()),
        },
    };
    let name = match place {
        Place::Machine => "on this machine's own KVM",
        Place::Lab => "in the lab",
    };
    step::say(&format!("microVMs run {name}: {why}"));
    Ok(place)
}
