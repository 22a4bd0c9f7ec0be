//! What is lent, lent twice, refused half-way, not let go of, and what is left on the bus each time.

use std::collections::BTreeSet;
use std::io;

use parking_lot::Mutex;

use super::super::desk::Desk;
use super::*;
use crate::agent::AgentError;

/// A bus of a machine that is not there, and a guest that does as it is told.
#[derive(Default)]
struct FakeBus {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    on_bus: BTreeSet<u8>,
    /// What the guest believes is there.
    seen: BTreeSet<u8>,
    rescans: usize,
    asked: usize,
    /// The disk with this minor number cannot be opened.
    broken: Option<i64>,
    /// The guest does not answer.
    silent: bool,
}

impl State {
    fn put(&mut self) -> (u8, String) {
        let slot = (1..).find(|slot| !self.on_bus.contains(slot)).unwrap();
        self.on_bus.insert(slot);
        (slot, format!("{slot:02x}.0"))
    }
}

fn silent() -> AgentError {
    AgentError::Silent { call: "test" }
}

impl Bus for FakeBus {
    type Id = u8;

    async fn attach_disk(&self, disk: &Disk) -> Result<(u8, String), LendError> {
        let mut state = self.state.lock();
        if state.broken == Some(disk.minor) {
            let source = io::ErrorKind::NotFound.into();
            return Err(LendError::Open { path: disk.node.clone(), source });
        }
        Ok(state.put())
    }

    async fn attach_function(&self, _: &PassedFunction) -> Result<(u8, String), LendError> {
        unreachable!("no test lends a function")
    }

    async fn attach_nic(&self, _: &mut Nic) -> Result<(u8, String), LendError> {
        Ok(self.state.lock().put())
    }

    async fn attach_share(&self, share: &Share) -> Result<(u8, String), LendError> {
        if share.tag == "broken" {
            return Err(LendError::Panicked(share.tag.clone()));
        }
        Ok(self.state.lock().put())
    }

    async fn detach(&self, id: u8) {
        assert!(self.state.lock().on_bus.remove(&id), "{id} is not on the bus");
    }

    async fn rescan(&self, expect: Vec<message::DeviceLocator>) -> Result<(), AgentError> {
        let mut state = self.state.lock();
        state.rescans += 1;
        if state.silent {
            return Err(silent());
        }
        for locator in expect {
            let slot = u8::from_str_radix(&locator.pci_path()[..2], 16).unwrap();
            assert!(!state.seen.contains(&slot), "the guest takes {slot} for what was there before");
            assert!(state.on_bus.contains(&slot));
        }
        state.seen = state.on_bus.clone();
        Ok(())
    }

    async fn let_go(&self, path: &str) -> Result<(), AgentError> {
        let mut state = self.state.lock();
        state.asked += 1;
        if state.silent {
            return Err(silent());
        }
        let slot = u8::from_str_radix(&path[..2], 16).unwrap();
        if state.seen.remove(&slot) {
            return Ok(());
        }
        let (call, message) = ("RemovePci", format!("no PCI function at {path}"));
        Err(AgentError::Refused { call, code: ttrpc::Code::NOT_FOUND, message })
    }
}

impl FakeBus {
    fn on_bus(&self) -> Vec<u8> {
        self.state.lock().on_bus.iter().copied().collect()
    }
}

fn disks(disks: &[Disk]) -> Wanted<'_> {
    Wanted { disks, ..Wanted::default() }
}

fn share(tag: &str) -> Share {
    Share { tag: tag.into(), directory: format!("/shared/{tag}").into() }
}

fn nic(name: &str) -> Nic {
    Nic { name: name.into(), mac: [2, 0, 0, 0, 0, 1], mtu: 1500, addresses: Vec::new(), taps: Vec::new() }
}

fn disk(minor: i64) -> Disk {
    Disk {
        node: format!("/dev/loop{minor}").into(),
        container_path: format!("/dev/disk{minor}").into(),
        major: 7,
        minor,
        read_only: false,
    }
}

#[tokio::test]
async fn a_batch_is_one_look_at_the_bus_and_goes_as_it_came() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (loan, devices) = desk.lend(&bus, disks(&[disk(0), disk(1), disk(2)])).await.unwrap();
    let paths: Vec<_> = devices.iter().map(|device| device.locator.pci_path()).collect();
    assert_eq!((paths, bus.state.lock().rescans), (vec!["01.0", "02.0", "03.0"], 1));
    desk.take_back(&bus, loan).await;
    assert_eq!((bus.on_bus(), bus.state.lock().seen.len()), (vec![], 0));
    let (_, devices) = desk.lend(&bus, disks(&[])).await.unwrap();
    assert!(devices.is_empty() && bus.state.lock().rescans == 1, "nothing to look for");
}

#[tokio::test]
async fn what_cannot_be_attached_undoes_what_was() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (_kept, _) = desk.lend(&bus, disks(&[disk(9)])).await.unwrap();
    bus.state.lock().broken = Some(2);
    let error = desk.lend(&bus, disks(&[disk(0), disk(9), disk(2)])).await.unwrap_err();
    assert!(error.to_string().contains("/dev/loop2"), "{error}");
    assert_eq!(bus.on_bus(), [1], "the disk of the other container");
    bus.state.lock().broken = None;
    desk.lend(&bus, disks(&[disk(0), disk(2)])).await.unwrap();
    assert_eq!(bus.on_bus(), [1, 2, 3]);
}

#[tokio::test]
async fn a_disk_lent_twice_is_one_disk_and_goes_with_its_last_borrower() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (first, one) = desk.lend(&bus, disks(&[disk(0)])).await.unwrap();
    let (second, other) = desk.lend(&bus, disks(&[disk(0)])).await.unwrap();
    assert_eq!(one[0].locator, other[0].locator);
    assert_eq!((bus.on_bus(), bus.state.lock().rescans), (vec![1], 1));
    let read_only = Disk { read_only: true, ..disk(0) };
    let error = desk.lend(&bus, disks(&[read_only])).await.unwrap_err();
    assert!(error.to_string().contains("/dev/loop0"), "{error}");
    desk.take_back(&bus, first).await;
    assert_eq!(bus.on_bus(), [1]);
    desk.take_back(&bus, second).await;
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
}

#[tokio::test]
async fn a_guest_that_never_answers_costs_one_wait_and_leaves_the_bus_clean() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    bus.state.lock().silent = true;
    let error = desk.lend(&bus, disks(&[disk(0), disk(1), disk(2)])).await.unwrap_err();
    assert!(matches!(error, LendError::Agent(AgentError::Silent { .. })), "{error}");
    assert_eq!((bus.on_bus(), bus.state.lock().asked), (vec![], 1), "asked once, not for each");

    // It had seen them, though, and answers again.
    bus.state.lock().seen = [1, 2, 3].into();
    assert!(desk.lend(&bus, disks(&[disk(0)])).await.is_err(), "still silent: nothing comes to those slots");
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
    bus.state.lock().silent = false;
    let (loan, _) = desk.lend(&bus, disks(&[disk(0)])).await.unwrap();
    assert_eq!((bus.on_bus(), bus.state.lock().seen.clone()), (vec![1], [1].into()));
    desk.take_back(&bus, loan).await;
}

#[tokio::test]
async fn a_device_the_guest_threw_off_its_bus_stays_lent_and_is_found_again() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (first, _) = desk.lend(&bus, disks(&[disk(0)])).await.unwrap();
    bus.state.lock().seen.clear();
    let (second, _) = desk.lend(&bus, disks(&[disk(1)])).await.unwrap();
    assert_eq!(bus.state.lock().seen, [1, 2].into());
    bus.state.lock().seen.remove(&2);
    desk.take_back(&bus, second).await;
    desk.take_back(&bus, first).await;
    let asked = std::mem::take(&mut bus.state.lock().asked);
    assert_eq!((bus.on_bus(), asked), (vec![], 2));
    desk.lend(&bus, disks(&[disk(2)])).await.unwrap();
    assert_eq!(bus.state.lock().asked, 0, "what is not there was let go of");
}

#[tokio::test]
async fn interfaces_and_shares_come_in_one_look_and_go_one_by_one() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (nics, shares) = (&mut [nic("eth1")], [share("a"), share("b")]);
    let wanted = Wanted { nics, shares: &shares, ..Wanted::default() };
    let (loan, devices) = desk.lend(&bus, wanted).await.unwrap();
    assert_eq!((bus.on_bus(), bus.state.lock().rescans, devices.len()), (vec![1, 2, 3], 1, 0));
    let twice = Wanted { nics: &mut [nic("eth1")], ..Wanted::default() };
    let error = desk.lend(&bus, twice).await.unwrap_err();
    assert!(error.to_string().contains("eth1"), "{error}");

    let mut loans: Vec<_> = loan.each().collect();
    desk.take_back(&bus, loans.remove(1)).await;
    assert_eq!(bus.on_bus(), [1, 3]);
    desk.take_back(&bus, Loan::all(loans)).await;
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
    let again = Wanted { nics: &mut [nic("eth1")], ..Wanted::default() };
    desk.lend(&bus, again).await.unwrap();
}

#[tokio::test]
async fn a_share_that_cannot_be_undoes_the_whole_batch() {
    let (bus, desk) = (FakeBus::default(), Desk::default());
    let (disk, nics, shares) = ([disk(0)], &mut [nic("eth1")], [share("a"), share("broken")]);
    let wanted = Wanted { disks: &disk, nics, shares: &shares, ..Wanted::default() };
    desk.lend(&bus, wanted).await.unwrap_err();
    assert_eq!((bus.on_bus(), bus.state.lock().rescans), (vec![], 0));
    let again = Wanted { nics: &mut [nic("eth1")], ..Wanted::default() };
    desk.lend(&bus, again).await.unwrap();
}
