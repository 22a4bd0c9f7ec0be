//! Devices assigned once and twice, assignments that fail half-way, devices that the guest does not release, and
//! which devices are on the bus after each.

use std::collections::BTreeSet;
use std::io;

use parking_lot::Mutex;

use super::super::assignments::Assignments;
use super::*;
use crate::agent::AgentError;

/// A bus without a machine, and a guest that obeys.
#[derive(Default)]
struct FakeBus {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    on_bus: BTreeSet<u8>,
    /// The slots in which the guest knows a device.
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

    async fn attach_disk(&self, disk: &Disk) -> Result<(u8, String), AssignError> {
        let mut state = self.state.lock();
        if state.broken == Some(disk.minor) {
            let source = io::ErrorKind::NotFound.into();
            return Err(AssignError::Open { path: disk.node.clone(), source });
        }
        Ok(state.put())
    }

    async fn attach_function(&self, _: &PassthroughFunction) -> Result<(u8, String), AssignError> {
        unreachable!("no test assigns a function")
    }

    async fn attach_nic(&self, _: &mut Nic) -> Result<(u8, String), AssignError> {
        Ok(self.state.lock().put())
    }

    async fn attach_volume(&self, volume: &VolumeDevice) -> Result<(u8, String), AssignError> {
        if volume.tag == "broken" {
            return Err(AssignError::Panicked(volume.tag.clone()));
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

    async fn release(&self, path: &str) -> Result<(), AgentError> {
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

fn disks(disks: &[Disk]) -> HostDevices<'_> {
    HostDevices { disks, ..HostDevices::default() }
}

fn volume(tag: &str) -> VolumeDevice {
    VolumeDevice { tag: tag.into(), directory: format!("/shared/{tag}").into() }
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
async fn devices_come_with_one_rescan_and_go_as_they_came() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (assignment, devices) = assignments.assign(&bus, disks(&[disk(0), disk(1), disk(2)])).await.unwrap();
    let paths: Vec<_> = devices.iter().map(|device| device.locator.pci_path()).collect();
    assert_eq!((paths, bus.state.lock().rescans), (vec!["01.0", "02.0", "03.0"], 1));
    assignments.unassign(&bus, assignment).await;
    assert_eq!((bus.on_bus(), bus.state.lock().seen.len()), (vec![], 0));
    let (_, devices) = assignments.assign(&bus, disks(&[])).await.unwrap();
    assert!(devices.is_empty() && bus.state.lock().rescans == 1, "nothing to look for");
}

#[tokio::test]
async fn what_cannot_be_attached_undoes_what_was() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (_kept, _) = assignments.assign(&bus, disks(&[disk(9)])).await.unwrap();
    bus.state.lock().broken = Some(2);
    let error = assignments.assign(&bus, disks(&[disk(0), disk(9), disk(2)])).await.unwrap_err();
    assert!(error.to_string().contains("/dev/loop2"), "{error}");
    assert_eq!(bus.on_bus(), [1], "the disk of the other container");
    bus.state.lock().broken = None;
    assignments.assign(&bus, disks(&[disk(0), disk(2)])).await.unwrap();
    assert_eq!(bus.on_bus(), [1, 2, 3]);
}

#[tokio::test]
async fn a_disk_of_two_containers_is_one_disk_and_goes_with_the_last() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (first, one) = assignments.assign(&bus, disks(&[disk(0)])).await.unwrap();
    let (second, other) = assignments.assign(&bus, disks(&[disk(0)])).await.unwrap();
    assert_eq!(one[0].locator, other[0].locator);
    assert_eq!((bus.on_bus(), bus.state.lock().rescans), (vec![1], 1));
    let read_only = Disk { read_only: true, ..disk(0) };
    let error = assignments.assign(&bus, disks(&[read_only])).await.unwrap_err();
    assert!(error.to_string().contains("/dev/loop0"), "{error}");
    assignments.unassign(&bus, first).await;
    assert_eq!(bus.on_bus(), [1]);
    assignments.unassign(&bus, second).await;
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
}

#[tokio::test]
async fn a_guest_that_never_answers_costs_one_wait_and_leaves_the_bus_clean() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    bus.state.lock().silent = true;
    let error = assignments.assign(&bus, disks(&[disk(0), disk(1), disk(2)])).await.unwrap_err();
    assert!(matches!(error, AssignError::Agent(AgentError::Silent { .. })), "{error}");
    assert_eq!((bus.on_bus(), bus.state.lock().asked), (vec![], 1), "asked once, not for each");

    // It had seen them, though, and answers again.
    bus.state.lock().seen = [1, 2, 3].into();
    assert!(
        assignments.assign(&bus, disks(&[disk(0)])).await.is_err(),
        "still silent: nothing comes to those slots"
    );
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
    bus.state.lock().silent = false;
    let (assignment, _) = assignments.assign(&bus, disks(&[disk(0)])).await.unwrap();
    assert_eq!((bus.on_bus(), bus.state.lock().seen.clone()), (vec![1], [1].into()));
    assignments.unassign(&bus, assignment).await;
}

#[tokio::test]
async fn a_device_the_guest_removed_itself_stays_assigned_and_is_found_again() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (first, _) = assignments.assign(&bus, disks(&[disk(0)])).await.unwrap();
    bus.state.lock().seen.clear();
    let (second, _) = assignments.assign(&bus, disks(&[disk(1)])).await.unwrap();
    assert_eq!(bus.state.lock().seen, [1, 2].into());
    bus.state.lock().seen.remove(&2);
    assignments.unassign(&bus, second).await;
    assignments.unassign(&bus, first).await;
    let asked = std::mem::take(&mut bus.state.lock().asked);
    assert_eq!((bus.on_bus(), asked), (vec![], 2));
    assignments.assign(&bus, disks(&[disk(2)])).await.unwrap();
    assert_eq!(bus.state.lock().asked, 0, "what is not there was let go of");
}

#[tokio::test]
async fn interfaces_and_volumes_come_with_one_rescan_and_go_one_by_one() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (nics, volumes) = (&mut [nic("eth1")], [volume("a"), volume("b")]);
    let wanted = HostDevices { nics, volumes: &volumes, ..HostDevices::default() };
    let (assignment, devices) = assignments.assign(&bus, wanted).await.unwrap();
    assert_eq!((bus.on_bus(), bus.state.lock().rescans, devices.len()), (vec![1, 2, 3], 1, 0));
    let twice = HostDevices { nics: &mut [nic("eth1")], ..HostDevices::default() };
    let error = assignments.assign(&bus, twice).await.unwrap_err();
    assert!(error.to_string().contains("eth1"), "{error}");

    let mut parts: Vec<_> = assignment.split().collect();
    assignments.unassign(&bus, parts.remove(1)).await;
    assert_eq!(bus.on_bus(), [1, 3]);
    assignments.unassign(&bus, Assignment::join(parts)).await;
    assert_eq!(bus.on_bus(), [] as [u8; 0]);
    let again = HostDevices { nics: &mut [nic("eth1")], ..HostDevices::default() };
    assignments.assign(&bus, again).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_cannot_be_attached_undoes_all_of_the_request() {
    let (bus, assignments) = (FakeBus::default(), Assignments::default());
    let (disk, nics, volumes) = ([disk(0)], &mut [nic("eth1")], [volume("a"), volume("broken")]);
    let wanted = HostDevices { disks: &disk, nics, volumes: &volumes, ..HostDevices::default() };
    assignments.assign(&bus, wanted).await.unwrap_err();
    assert_eq!((bus.on_bus(), bus.state.lock().rescans), (vec![], 0));
    let again = HostDevices { nics: &mut [nic("eth1")], ..HostDevices::default() };
    assignments.assign(&bus, again).await.unwrap();
}
