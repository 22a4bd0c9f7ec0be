//! What a driver may do to the transport, right and wrong, and what comes of it.

use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::pci::VirtioPciFunction;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::pci::function::PciFunction;
use crate::testing::Driver;
use crate::testing::Function;
use crate::testing::Machine;
use crate::virtio::device::ActivateError;
use crate::virtio::device::Activation;
use crate::virtio::device::DeviceState;
use crate::virtio::device::VirtioDevice;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::spec::feature;
use crate::virtio::spec::status;

const SIZES: &[u16] = &[256, 64, 1, 32768];
/// A device feature, and one the device does not have.
const OFFERED: u64 = 1 << 3;
const NOT_OFFERED: u64 = 1 << 4;

/// A device that keeps a record of what its transport does with it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    activation: Option<Activation>,
    activations: usize,
    resets: usize,
    refuse: bool,
    hang: bool,
    config: [u8; 8],
}

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u16 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        SIZES
    }
    fn features(&self) -> u64 {
        OFFERED
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().config;
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(*byte);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(register) = self.0.lock().config.get_mut(at as usize) {
                *register = *byte;
            }
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut record = self.0.lock();
        assert!(record.activation.is_none(), "activated twice");
        if record.refuse {
            return Err(ActivateError::QueueMissing(7));
        }
        record.activations += 1;
        record.activation = Some(activation);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), Hung> {
        let mut record = self.0.lock();
        if record.hang {
            return Err(Hung);
        }
        record.activation = None;
        record.resets += 1;
        Ok(())
    }
    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        Vec::new()
    }
    fn save(&self) -> DeviceState {
        DeviceState::default()
    }
}

impl Recorder {
    fn active(&self) -> bool {
        self.0.lock().activation.is_some()
    }
    fn interrupt(&self) -> Arc<dyn VirtioInterrupt> {
        self.0.lock().activation.as_ref().unwrap().interrupt.clone()
    }
    /// Index, size and the three addresses of each queue it was given.
    fn queues(&self) -> Vec<(u16, u16, u64, u64, u64)> {
        let record = self.0.lock();
        let queues = &record.activation.as_ref().unwrap().queues;
        let all = |q: &crate::virtio::device::ActiveQueue| {
            let queue = &q.queue;
            (q.index, queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring())
        };
        queues.iter().map(all).collect()
    }
}

fn plugged() -> (Machine, Recorder, u8) {
    let (machine, device) = (Machine::new(), Recorder::default());
    let slot = machine.plug(device.clone());
    (machine, device, slot)
}

/// Registers of queue `index` as the driver reads them.
fn registers(function: &Function<'_>, index: u16) -> [u64; 5] {
    function.write_common(0x16, 2, u64::from(index));
    let address = |at| function.read_common(at + 4, 4) << 32 | function.read_common(at, 4);
    let enabled = function.read_common(0x1c, 2);
    [function.read_common(0x18, 2), enabled, address(0x20), address(0x28), address(0x30)]
}

#[test]
fn the_function_is_a_modern_virtio_device() {
    let (machine, _, slot) = plugged();
    assert_eq!(machine.read_config(slot, 0, 4), 0x106a_1af4);
    assert!(machine.read_config(slot, 8, 1) >= 1, "revision of a modern device");
    assert_eq!(machine.read_config(slot, 0x3d, 1), 0, "no INTx");
    let function = Function::probe(&machine, slot);
    assert_eq!(function.vectors, 5);
    assert_eq!(function.read_common(0x12, 2), 4, "num_queues");
    assert!([function.common, function.isr, function.device, function.notify].iter().all(|&at| at != 0));
}

#[test]
fn the_device_gets_what_was_agreed() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, OFFERED | NOT_OFFERED);
    assert_eq!(driver.features & (OFFERED | NOT_OFFERED), OFFERED);
    let (first, last) = (driver.queue(0, Some(128)), driver.queue(3, None));
    driver.ready();
    assert_eq!(device.0.lock().activation.as_ref().unwrap().features, driver.features);
    let expected = [
        (0, 128, first.descriptors, first.available, first.used),
        (3, 32768, last.descriptors, last.available, last.used),
    ];
    assert_eq!(device.queues(), expected);
}

#[test]
fn a_feature_set_without_version_1_or_with_more_than_offered_is_refused() {
    let (machine, device, slot) = plugged();
    let function = Function::probe(&machine, slot);
    for features in [0, OFFERED, feature::VERSION_1 | NOT_OFFERED, u64::MAX] {
        function.set_status(0);
        function.set_status(3);
        function.accept(features);
        function.set_status(0xb);
        assert_eq!(function.status(), 3, "{features:#x}");
        // Ready all the same.
        function.set_status(0xf);
        assert_eq!((function.status() & status::DRIVER_OK, device.active()), (0, false));
    }
    function.accept(feature::VERSION_1);
    function.set_status(0xb);
    assert_eq!(function.status(), 0xb, "a driver may come down");
}

#[test]
fn reset_forgets_negotiated_features_queues_and_vectors() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, OFFERED);
    let _queue = driver.queue(1, Some(8));
    driver.ready();
    driver.reset();
    assert!(!device.active());
    let function = &driver.function;
    assert_eq!(registers(function, 1), [64, 0, 0, 0, 0]);
    assert_eq!((function.read_common(0x10, 2), function.read_common(0x1a, 2)), (0xffff, 0xffff));
    function.write_common(0x08, 4, 0);
    assert_eq!(function.read_common(0x0c, 4), 0);
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.ready();
    assert_eq!(device.queues(), []);
}

#[test]
fn a_reset_is_over_when_the_device_has_let_go() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, OFFERED);
    let _queue = driver.queue(1, Some(8));
    driver.ready();
    let (function, ready) = (&driver.function, driver.function.status());
    device.0.lock().hang = true;
    function.set_status(0);
    assert_eq!((function.status(), device.active()), (ready, true));
    // Nothing else helps, nor can the device be started once more.
    function.set_status(ready);
    function.set_status(0);
    assert_eq!((function.status(), device.0.lock().activations), (ready, 1));
    assert_eq!(registers(function, 1)[1], 1, "the queue stays as it is");
    device.0.lock().hang = false;
    assert_eq!((function.status(), device.active()), (0, false));
    assert_eq!(registers(function, 1), [64, 0, 0, 0, 0]);
    assert_eq!((function.read_common(0x10, 2), function.read_common(0x1a, 2)), (0xffff, 0xffff));
    Driver::negotiate(&machine, slot, 0).ready();
    assert_eq!(device.0.lock().activations, 2);
}

#[test]
fn features_are_frozen_once_agreed() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, OFFERED);
    driver.function.accept(u64::MAX);
    driver.ready();
    assert_eq!(device.0.lock().activation.as_ref().unwrap().features, driver.features);
}

#[test]
fn queue_registers_are_frozen_once_enabled_or_ready() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let function = &driver.function;
    let _queue = driver.queue(0, Some(16));
    let overwrite = |index| {
        function.write_common(0x16, 2, index);
        function.write_common(0x18, 2, 2);
        for at in [0x20, 0x28, 0x30] {
            function.write_common(at, 4, 0x1000);
            function.write_common(at + 4, 4, 1);
            function.write_common(at, 8, 0x2000);
        }
        function.write_common(0x1c, 2, 0);
        function.write_common(0x1c, 2, 1);
    };
    let before = registers(function, 0);
    overwrite(0);
    assert_eq!(registers(function, 0), before, "enabled");
    driver.ready();
    let (active, idle) = (device.queues(), registers(function, 1));
    overwrite(0);
    overwrite(1);
    assert_eq!((registers(function, 0), registers(function, 1)), (before, idle), "ready");
    assert_eq!(device.queues(), active);
    function.set_status(0xf);
    assert_eq!(device.0.lock().activations, 1, "ready once");
}

#[test]
fn sizes_that_are_no_power_of_two_or_too_large_are_ignored() {
    let (machine, _, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.function.write_common(0x16, 2, 1);
    for size in [0, 3, 63, 65, 128, 0x8000, 0xffff] {
        driver.function.write_common(0x18, 2, size);
        assert_eq!(driver.function.read_common(0x18, 2), 64, "{size}");
    }
    driver.function.write_common(0x16, 2, 4);
    assert_eq!(registers(&driver.function, 4), [0; 5], "no such queue");
}

#[test]
fn a_queue_outside_ram_needs_a_reset_and_reset_helps() {
    let (machine, device, slot) = plugged();
    let end = Machine::RAM[0].1;
    let cases = [
        (0x20, end),              // in the hole
        (0x20, end - 16),         // across its start
        (0x20, 0x1008),           // not aligned
        (0x28, !1),               // wraps around
        (0x28, 0x1001),           // not aligned
        (0x30, 0x1002),           // not aligned
        (0x30, Machine::ECAM),    // registers
        (0x30, 0x40_0000_0000),   // a BAR
        (0x30, end + 0x100_0000), // crosses nothing: the second piece of RAM
    ];
    for (register, address) in cases {
        let driver = Driver::negotiate(&machine, slot, 0);
        let function = &driver.function;
        function.write_common(0x16, 2, 0);
        for at in [0x20, 0x28, 0x30] {
            function.write_common(at, 4, 0x10_0000);
        }
        function.write_common(register, 8, address);
        function.write_common(0x1c, 2, 1);
        function.set_status(0xf);
        let valid = address == end + 0x100_0000;
        assert_eq!(device.active(), valid, "{register:#x} = {address:#x}");
        assert_eq!(function.status() & status::DEVICE_NEEDS_RESET != 0, !valid);
        assert_eq!(machine.platform.take(function.message(0)), !valid, "configuration interrupt");
    }
    let driver = Driver::negotiate(&machine, slot, 0);
    let _queue = driver.queue(0, None);
    driver.ready();
    assert!(device.active());
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let (machine, device, slot) = plugged();
    device.0.lock().refuse = true;
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.function.set_status(0xf);
    driver.wait_needs_reset();
    device.0.lock().refuse = false;
    driver.reset();
    Driver::negotiate(&machine, slot, 0).ready();
    assert!(device.active());
}

#[test]
fn status_bits_are_only_added_and_needs_reset_is_the_devices() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.function.set_status(0x4b);
    assert_eq!(driver.function.status(), 0xb);
    driver.function.set_status(1);
    assert_eq!(driver.function.status(), 0xb);
    driver.function.set_status(0x4f);
    assert_eq!((driver.function.status(), device.active()), (0xf, true));
    device.interrupt().needs_reset();
    assert_eq!(driver.function.status(), 0x4f);
    driver.function.set_status(0xcf);
    assert_eq!(driver.function.status(), 0xcf, "the driver gives up");
    driver.reset();
}

#[test]
fn interrupts_go_to_the_vectors_the_driver_chose() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let function = &driver.function;
    let _queue = driver.queue(1, None);
    driver.ready();
    let interrupt = device.interrupt();
    interrupt.used_buffers(1);
    assert!(machine.platform.take(function.message(2)));
    // Moved to the vector of configuration changes, then to one that does not exist, then to none.
    function.write_common(0x16, 2, 1);
    for (vector, reads) in [(0, 0), (5, 0xffff), (0xfffe, 0xffff), (0xffff, 0xffff)] {
        function.write_common(0x1a, 2, vector);
        assert_eq!(function.read_common(0x1a, 2), reads);
        interrupt.used_buffers(1);
        assert_eq!(machine.platform.take(function.message(0)), vector == 0);
    }
    // Queues without a vector, and a queue that does not exist.
    [0, 3, 4, 0xffff].into_iter().for_each(|queue| interrupt.used_buffers(queue));
    assert!((0..5).all(|vector| !machine.platform.take(function.message(vector))));
}

#[test]
fn a_configuration_change_is_a_new_generation_and_an_interrupt() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.ready();
    let generation = || driver.function.read_common(0x15, 1);
    let before = generation();
    device.0.lock().config = *b"12345678";
    device.interrupt().config_changed();
    assert_ne!(generation(), before);
    assert!(machine.platform.take(driver.function.message(0)));
    assert_eq!(driver.config(0, 8), u64::from_le_bytes(*b"12345678"));
    assert_eq!(driver.config(6, 4), u64::from(u16::from_le_bytes(*b"78")), "past the end reads as zero");
    machine.write(driver.function.device + 2, 2, 0x3030);
    assert_eq!(device.0.lock().config, *b"12005678");
}

#[test]
fn a_notification_arrives_by_doorbell_and_by_trap() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let (first, last) = (driver.queue(0, None), driver.queue(3, Some(4)));
    driver.ready();
    let count = |at: usize| {
        let record = device.0.lock();
        record.activation.as_ref().unwrap().queues[at].notification.read().unwrap_or(0)
    };
    first.notify();
    last.notify();
    assert_eq!((count(0), count(1)), (1, 1));
    let address = driver.function.notify + 4 * 3;
    assert!(machine.platform.doorbells().contains(&address));
    machine.mmio.write(address, &[3, 0]);
    machine.mmio.write(driver.function.notify + 4 * 4, &[4, 0]);
    assert_eq!((count(0), count(1)), (0, 1));
}

#[test]
fn isr_status_says_why_and_reading_clears_it() {
    let (machine, device, slot) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.ready();
    let isr = || machine.read(driver.function.isr, 1);
    driver.function.write_config(driver.function.msix + 2, 2, 0);
    isr();
    device.interrupt().used_buffers(0);
    assert_eq!((isr(), isr()), (1, 0));
    device.interrupt().config_changed();
    assert_eq!((isr(), isr()), (2, 0));
}

#[test]
fn structures_can_be_reached_through_configuration_space() {
    let (machine, device, slot) = plugged();
    device.0.lock().config = *b"12345678";
    let function = Function::probe(&machine, slot);
    let access = |bar: u64, offset: u64, length: u64| {
        function.write_config(function.window + 4, 1, bar);
        function.write_config(function.window + 8, 4, offset);
        function.write_config(function.window + 12, 4, length);
    };
    access(0, function.device - function.bar(0), 4);
    assert_eq!(function.read_config(function.window + 16, 4), u64::from(u32::from_le_bytes(*b"1234")));
    function.write_config(function.window + 16, 4, 0);
    assert_eq!(device.0.lock().config, *b"\0\0\0\x005678");
    access(0, function.common - function.bar(0) + 0x14, 1);
    function.write_config(function.window + 16, 1, 3);
    assert_eq!(function.status(), 3);
    // A BAR, a length or an offset that is none.
    for (bar, offset, length) in
        [(1, 0x14, 1), (0, 0x14, 3), (0, 0x14, u64::from(u32::MAX)), (0, 0xffff_ffff, 4)]
    {
        access(bar, offset, length);
        for width in [1, 2, 4] {
            function.write_config(function.window + 16, width, 0);
            function.read_config(function.window + 16, width);
        }
        assert_eq!(function.status(), 3);
    }
}

#[test]
fn a_device_that_has_left_the_bus_cannot_be_started() {
    let (machine, device) = (Machine::new(), Recorder::default());
    let platform = machine.platform.platform();
    let function =
        VirtioPciFunction::new(Box::new(device.clone()), machine.memory.clone(), platform).unwrap();
    let slot = machine.insert(function.clone());
    let driver = Driver::negotiate(&machine, slot, 0);
    driver.ready();
    assert!(device.active());
    machine.segment.remove(slot);
    assert!(!device.active());
    // What another vCPU was about to write.
    let write = |offset: u64, data: &[u8]| function.write_bar(0, offset, data).unwrap();
    write(0x14, &[3]);
    write(0x08, &[1, 0, 0, 0]);
    write(0x0c, &[1, 0, 0, 0]);
    write(0x14, &[0xb]);
    write(0x14, &[0xf]);
    assert!(!device.active());
    drop(function);
    assert_eq!(machine.platform.vectors(), 0);
}

/// One thing a guest can do to the function.
#[derive(Debug, Clone)]
enum Step {
    Common(u64, usize, u64),
    Bar(u64, usize, u64),
    Config(u16, usize, u64),
    Status(u8),
    /// Sets up a queue as a driver should, if the device lets it.
    Queue(u64),
    Start,
}

fn step() -> impl Strategy<Value = Step> {
    let width = prop::sample::select(vec![1usize, 2, 4, 8]);
    // Small numbers and addresses in RAM are what gets past the checks.
    let value = prop_oneof![any::<u64>(), 0u64..8, (0u64..0x400).prop_map(|page| page << 12)];
    let registers =
        prop::sample::select(vec![0u64, 4, 8, 12, 16, 0x16, 0x18, 0x1a, 0x1c, 0x20, 0x24, 0x28, 0x30]);
    prop_oneof![
        8 => (registers, width.clone(), value.clone()).prop_map(|(o, w, v)| Step::Common(o, w, v)),
        4 => (0u64..0x8000, width.clone(), value.clone()).prop_map(|(o, w, v)| Step::Bar(o, w, v)),
        2 => (0u16..0x100, width, value).prop_map(|(o, w, v)| Step::Config(o, w, v)),
        3 => any::<u8>().prop_map(Step::Status),
        2 => (0u64..4).prop_map(Step::Queue),
        2 => Just(Step::Start),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is written in whatever order and width: no panic, a started device keeps the queues it was
    /// started with, all of them inside RAM, and after a reset everything works.
    #[test]
    fn any_sequence_of_writes_is_survived(steps in prop::collection::vec(step(), 0..120)) {
        let (machine, device, slot) = plugged();
        let home = Function::probe(&machine, slot).bar(0);
        for step in steps {
            match step {
                Step::Common(offset, width, value) => machine.write(home + offset, width, value),
                Step::Bar(offset, width, value) => {
                    machine.write(home + offset, width, value);
                    machine.read(home + offset, width);
                }
                Step::Config(offset, width, value) => {
                    machine.write_config(slot, offset, width, value);
                    machine.read_config(slot, offset, width);
                }
                Step::Status(value) => machine.write(home + 0x14, 1, u64::from(value)),
                Step::Queue(index) => {
                    machine.write(home + 0x16, 2, index);
                    for (page, register) in (0..).zip([0x20, 0x28, 0x30]) {
                        machine.write(home + register, 8, 0x10_0000 * (index + 1) + 0x8_0000 * page);
                    }
                    machine.write(home + 0x1c, 2, 1);
                }
                Step::Start => {
                    machine.write(home + 8, 4, 1);
                    machine.write(home + 12, 4, 1);
                    for value in [1, 3, 0xb, 0xf] {
                        machine.write(home + 0x14, 1, value);
                    }
                }
            }
            let status = machine.read(home + 0x14, 1);
            if let Some(activation) = &device.0.lock().activation
                && status != 0xff
            {
                prop_assert_eq!(status & 0xf & !3, 0xc, "started means agreed and ready");
                let memory = machine.memory.memory();
                prop_assert!(activation.queues.iter().all(|q| q.queue.is_valid(&*memory)));
            }
        }
        machine.write_config(slot, 4, 2, 0);
        machine.write_config(slot, 0x10, 4, home & 0xffff_ffff);
        machine.write_config(slot, 0x14, 4, home >> 32);
        let function = Function::probe(&machine, slot);
        if device.active() {
            for (index, size, descriptors, driver, area) in device.queues() {
                let expected = [u64::from(size), 1, descriptors, driver, area];
                prop_assert_eq!(registers(&function, index), expected);
            }
        }
        let driver = Driver::negotiate(&machine, slot, OFFERED);
        let queue = driver.queue(2, None);
        driver.ready();
        prop_assert_eq!(device.queues(), [(2, 1, queue.descriptors, queue.available, queue.used)]);
        device.interrupt().used_buffers(2);
        machine.platform.wait_for(function.message(3));
    }
}
