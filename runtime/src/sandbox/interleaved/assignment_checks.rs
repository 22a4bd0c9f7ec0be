//! Containers that are assigned disks and interfaces, some of them the same, and give them back at the same time,
//! while attaching fails half-way and the guest does not always answer.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::parking_lot::Mutex;
use kiai_interleave::shuttle::future;
use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;

use super::AssignError;
use super::assign::Assignment;
use super::assign::Bus;
use super::assign::HostDevices;
use super::assign::VolumeDevice;
use super::assignments::Assignments;
use crate::agent::AgentError;
use crate::agent::message;
use crate::host::network::Nic;
use crate::plan::Disk;
use crate::plan::PassthroughFunction;

/// The minor number of a disk that cannot be opened.
const BROKEN: i64 = 9;

/// A slot of the bus.
type Slot = u8;

/// The device in each slot of a bus, by minor number or name, and the device the guest knows there.
#[derive(Default)]
struct Slots {
    on_bus: BTreeMap<Slot, String>,
    seen: BTreeMap<Slot, String>,
}

/// A machine and its guest, each of whose calls takes a while.
#[derive(Default)]
struct Machine {
    slots: Mutex<Slots>,
    /// One call to the guest in so many is not answered; half of those are carried out all the same.
    silent: Option<u32>,
}

impl Machine {
    async fn attach(&self, name: String) -> Result<(Slot, String), AssignError> {
        future::yield_now().await;
        let mut slots = self.slots.lock();
        assert!(slots.on_bus.values().all(|other| *other != name), "{name} is attached twice");
        let slot = (1..).find(|slot| !slots.on_bus.contains_key(slot)).unwrap();
        slots.on_bus.insert(slot, name);
        Ok((slot, format!("{slot:02x}.0")))
    }

    /// A call to the guest, which `act` carries out.
    async fn call<T>(&self, act: impl FnOnce(&mut Slots) -> Result<T, AgentError>) -> Result<T, AgentError> {
        future::yield_now().await;
        let answers = self.silent.is_none_or(|one_in| !thread_rng().gen_ratio(1, one_in));
        let answer =
            if answers || thread_rng().gen_bool(0.5) { Some(act(&mut self.slots.lock())) } else { None };
        future::yield_now().await;
        answer.filter(|_| answers).unwrap_or(Err(AgentError::Silent { call: "test" }))
    }

    /// The guest knows the device in the slot in which the host has it.
    fn assert_present(&self, name: &str) {
        let slots = self.slots.lock();
        let slot = slots.on_bus.iter().find(|(_, other)| *other == name).map(|(slot, _)| slot);
        let slot = slot.unwrap_or_else(|| panic!("{name} is assigned and not on the bus"));
        assert_eq!(slots.seen.get(slot).map(String::as_str), Some(name), "the guest has not seen {name}");
    }
}

impl Bus for Machine {
    type Id = Slot;

    async fn attach_disk(&self, disk: &Disk) -> Result<(Slot, String), AssignError> {
        if disk.minor == BROKEN {
            future::yield_now().await;
            let source = io::ErrorKind::NotFound.into();
            return Err(AssignError::Open { path: disk.node.clone(), source });
        }
        self.attach(disk.minor.to_string()).await
    }

    async fn attach_function(&self, _: &PassthroughFunction) -> Result<(Slot, String), AssignError> {
        unreachable!("no check assigns a function")
    }

    async fn attach_nic(&self, nic: &mut Nic) -> Result<(Slot, String), AssignError> {
        self.attach(nic.name.clone()).await
    }

    async fn attach_volume(&self, _: &VolumeDevice) -> Result<(Slot, String), AssignError> {
        unreachable!("no check assigns a volume")
    }

    async fn detach(&self, slot: Slot) {
        future::yield_now().await;
        assert!(self.slots.lock().on_bus.remove(&slot).is_some(), "{slot} is not on the bus");
    }

    async fn rescan(&self, _: Vec<message::DeviceLocator>) -> Result<(), AgentError> {
        let look = |slots: &mut Slots| {
            for (slot, name) in &slots.on_bus {
                let seen = slots.seen.entry(*slot).or_insert_with(|| name.clone());
                assert_eq!(seen, name, "the guest takes what is in {slot} for what was there before");
            }
            Ok(())
        };
        self.call(look).await
    }

    async fn release(&self, path: &str) -> Result<(), AgentError> {
        let slot = Slot::from_str_radix(&path[..2], 16).unwrap();
        let release = |slots: &mut Slots| {
            let message = format!("no PCI function at {path}");
            let refused = AgentError::Refused { call: "RemovePci", code: ttrpc::Code::NOT_FOUND, message };
            slots.seen.remove(&slot).map(|_| ()).ok_or(refused)
        };
        self.call(release).await
    }
}

/// A machine and the devices that are assigned to its containers.
#[derive(Default)]
struct World {
    machine: Machine,
    assignments: Assignments<Slot>,
}

impl World {
    /// One container: it is assigned disks, uses them and gives them back. Returns whether they could be assigned.
    async fn run_container(&self, minors: &[i64]) -> bool {
        let Ok(assignment) = self.assign(minors).await else { return false };
        let names: Vec<_> = minors.iter().map(i64::to_string).collect();
        self.use_all(&names, assignment).await;
        true
    }

    async fn assign(&self, minors: &[i64]) -> Result<Assignment, AssignError> {
        let disks: Vec<_> = minors.iter().copied().map(disk).collect();
        let (assignment, devices) = self
            .assignments
            .assign(&self.machine, HostDevices { disks: &disks, ..HostDevices::default() })
            .await?;
        assert_eq!(devices.len(), minors.len());
        Ok(assignment)
    }

    /// The same with a network interface.
    async fn plug(&self, name: &str) -> bool {
        let nics = &mut [nic(name)];
        match self.assignments.assign(&self.machine, HostDevices { nics, ..HostDevices::default() }).await {
            Ok((assignment, _)) => {
                self.use_all(&[name.to_owned()], assignment).await;
                true
            }
            Err(error) => {
                assert!(matches!(error, AssignError::InterfaceAssigned(_)), "{error}");
                false
            }
        }
    }

    async fn use_all(&self, names: &[String], assignment: Assignment) {
        for _ in 0..2 {
            names.iter().for_each(|name| self.machine.assert_present(name));
            future::yield_now().await;
        }
        self.assignments.unassign(&self.machine, assignment).await;
    }

    /// No device is left on the bus or in the guest.
    fn assert_clean(&self) {
        let slots = self.machine.slots.lock();
        assert!(slots.on_bus.is_empty() && slots.seen.is_empty(), "{:?} {:?}", slots.on_bus, slots.seen);
    }
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

fn nic(name: &str) -> Nic {
    Nic { name: name.into(), mac: [2, 0, 0, 0, 0, 1], mtu: 1500, addresses: Vec::new(), taps: Vec::new() }
}

/// Runs a container for each list of disks, all at the same time; returns which of them were assigned their disks.
fn assign_at_once<const N: usize>(world: &Arc<World>, requests: [&'static [i64]; N]) -> Vec<bool> {
    future::block_on(async {
        let tasks = requests.map(|minors| {
            let world = world.clone();
            future::spawn(async move { world.run_container(minors).await })
        });
        let mut assigned = Vec::new();
        for task in tasks {
            assigned.push(task.await.unwrap());
        }
        assigned
    })
}

#[test]
fn a_disk_of_several_containers_is_one_disk_as_long_as_one_of_them_has_it() {
    check(|| {
        let world = Arc::new(World::default());
        assert_eq!(assign_at_once(&world, [&[0, 1], &[1, 0], &[0]]), [true; 3]);
        world.assert_clean();
    });
}

#[test]
fn unassigning_a_disk_does_not_detach_it_from_a_container_that_is_being_assigned_it() {
    check(|| {
        let world = Arc::new(World::default());
        let assignment = future::block_on(world.assign(&[0, 1])).unwrap();
        let giving = world.clone();
        let giving =
            future::spawn(async move { giving.assignments.unassign(&giving.machine, assignment).await });
        assert_eq!(assign_at_once(&world, [&[0], &[2, 1]]), [true; 2]);
        future::block_on(giving).unwrap();
        world.assert_clean();
    });
}

#[test]
fn an_assignment_that_fails_half_way_detaches_no_device_of_another() {
    check(|| {
        let world = Arc::new(World::default());
        assert_eq!(assign_at_once(&world, [&[0, 1, BROKEN], &[1, 0], &[BROKEN]]), [false, true, false]);
        world.assert_clean();
    });
}

#[test]
fn an_interface_is_one_containers_at_a_time() {
    check(|| {
        let world = Arc::new(World::default());
        future::block_on(async {
            let tasks = [(); 2].map(|()| {
                let world = world.clone();
                future::spawn(async move { world.plug("eth1").await })
            });
            let mut plugged = 0;
            for task in tasks {
                plugged += usize::from(task.await.unwrap());
            }
            assert!(plugged > 0);
        });
        world.assert_clean();
    });
}

#[test]
fn a_guest_that_does_not_always_answer_takes_no_device_for_another() {
    check(|| {
        let machine = Machine { silent: Some(3), ..Machine::default() };
        let world = Arc::new(World { machine, ..World::default() });
        assign_at_once(&world, [&[0, 1], &[2, 0], &[1]]);
        let slots = world.machine.slots.lock();
        assert!(slots.on_bus.is_empty(), "{:?}", slots.on_bus);
    });
}
