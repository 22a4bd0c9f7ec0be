//! Which test runs where and with how many vCPUs. Pure.

use std::fmt;

use crate::venue::Venue;

/// Modules that use devices of the machine they run on: always in a lab, which has some to spare.
const IN_A_LAB: [&str; 3] = ["devices", "plug", VFIO];
/// The one of them whose lab has an IOMMU.
const VFIO: &str = "vfio";

/// Modules that run a second time with another number of vCPUs, and where.
const VARIANTS: [(&str, u8, Kind); 4] = [
    ("exec", 2, Kind::Lab),
    ("run", 4, Kind::Lab),
    ("streams", 2, Kind::TwoCpus),
    ("together", 4, Kind::TwoCpus),
];

/// Where a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// On this machine.
    Here,
    /// In a lab of one CPU.
    Lab,
    /// In a lab of two CPUs.
    TwoCpus,
    /// In a lab with an IOMMU and devices to pass through.
    Vfio,
    /// The same, with a kernel that has iommufd.
    Iommufd,
}

/// One run of one test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) test: String,
    pub(crate) vcpus: u8,
    pub(crate) kind: Kind,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.test)?;
        if self.vcpus > 1 {
            write!(f, " ({} vCPUs)", self.vcpus)?;
        }
        match self.kind {
            Kind::TwoCpus => f.write_str(" (2 CPUs)"),
            Kind::Iommufd => f.write_str(" (iommufd)"),
            Kind::Here | Kind::Lab | Kind::Vfio => Ok(()),
        }
    }
}

/// Every run of every test.
pub(crate) fn cases(tests: &[String], venue: Venue) -> Vec<Case> {
    tests.iter().flat_map(|test| cases_of(test, venue)).collect()
}

fn cases_of(test: &str, venue: Venue) -> Vec<Case> {
    let module = test.split("::").next().unwrap_or_default();
    let case = |vcpus, kind| Case { test: test.to_owned(), vcpus, kind };
    if module == VFIO {
        return vec![case(1, Kind::Vfio), case(1, Kind::Iommufd)];
    }
    let here = |kind| if venue == Venue::Machine && !IN_A_LAB.contains(&module) { Kind::Here } else { kind };
    let variants = VARIANTS.iter().filter(|(varied, ..)| *varied == module);
    let variants = variants.map(|(_, vcpus, kind)| case(*vcpus, here(*kind)));
    [case(1, here(Kind::Lab))].into_iter().chain(variants).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(test: &str, venue: Venue) -> Vec<(u8, Kind)> {
        cases(&[test.to_owned()], venue).into_iter().map(|case| (case.vcpus, case.kind)).collect()
    }

    #[test]
    fn what_uses_devices_of_the_machine_runs_in_a_lab_wherever_microvms_run() {
        for venue in [Venue::Machine, Venue::Lab] {
            assert_eq!(kinds("vfio::a_disk", venue), [(1, Kind::Vfio), (1, Kind::Iommufd)]);
            assert_eq!(kinds("plug::a_disk", venue), [(1, Kind::Lab)]);
        }
        assert_eq!(kinds("vfio_like::x", Venue::Machine), [(1, Kind::Here)]);
        assert_eq!(kinds("volumes::x", Venue::Machine), [(1, Kind::Here)]);
        assert_eq!(kinds("volumes::x", Venue::Lab), [(1, Kind::Lab)]);
    }

    #[test]
    fn pods_have_one_two_and_four_vcpus_and_some_run_on_two_cpus() {
        assert_eq!(kinds("run::x", Venue::Lab), [(1, Kind::Lab), (4, Kind::Lab)]);
        assert_eq!(kinds("streams::x", Venue::Lab), [(1, Kind::Lab), (2, Kind::TwoCpus)]);
        assert_eq!(kinds("streams::x", Venue::Machine), [(1, Kind::Here), (2, Kind::Here)]);
    }

    #[test]
    fn runs_of_one_test_have_different_names() {
        let cases = cases(&["run::x".into(), "streams::x".into(), "vfio::x".into()], Venue::Lab);
        let names: std::collections::BTreeSet<_> = cases.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), cases.len());
    }
}
