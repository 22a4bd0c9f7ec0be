//! virtio-net (virtio 1.2 §5.1) on a tap interface.
//!
//! ```text
//!   control queue ── how many pairs ──► Taps ── attach, detach ──► kernel
//!   receive queue  ◄── Pair (a thread each) ◄── readv ── tap queue
//!   transmit queue ──►                      ── writev ──►
//! ```
//! The control queue is served on the first pair's thread. A frame moves by one system call between the tap and
//! guest memory. Checksums and segmentation are left to whoever finishes the frame: the virtio header says what
//! is missing, and the tap speaks the same header.
//!
//! It does not know what the tap is plugged into, and changes nothing about the interface but the header, the
//! offloads and which queues are attached.

mod control;
mod pair;
mod receive;
mod tap;
mod taps;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::ActiveQueue;
use super::device::DeviceState;
use super::device::OwnState;
use super::device::VirtioDevice;
use super::device::WrongState;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::log_limit::LogLimit;
use crate::platform::Role;
use control::Control;
use pair::Pair;
use taps::Taps;

pub use tap::open_tap;

/// Feature bits (virtio 1.2 §5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
}

/// `VIRTIO_NET_S_LINK_UP` (§5.1.4).
const LINK_UP: u16 = 1;
/// Descriptors of a receive or transmit queue, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 16;
/// Queue pairs one device may have.
const MOST_PAIRS: usize = 64;
/// Bytes of the header before each frame with VERSION_1 (§5.1.6).
const HEADER_SIZE: usize = 12;
/// Bytes of an Ethernet header with one VLAN tag.
const ETHERNET_HEADER: usize = 18;
/// Largest frame and its header: what segmentation offload makes of the largest IP packet.
const MOST_FRAME: usize = HEADER_SIZE + ETHERNET_HEADER + 65535;
/// Frames moved in one direction before the other has its turn.
const BUDGET: usize = 128;
/// Frames after which the driver is told, if it wants to know, without waiting for the end of a burst.
const BURST: usize = 32;

/// Why a network device cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// None, or more than one device can have.
    #[error("{0} tap queues: between 1 and {MOST_PAIRS} can be had")]
    Queues(usize),
    /// A group address, or all zeroes.
    #[error("{} cannot be the address of one interface", hex(.0))]
    Mac([u8; 6]),
    /// Less than IPv4 needs (68 bytes).
    #[error("MTU {0}: at least 68")]
    Mtu(u16),
    /// A descriptor is not a tap queue, or not one with the header we need.
    #[error("tap queue {index}")]
    Tap {
        /// Which of them.
        index: usize,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// No eventfd.
    #[error("eventfd")]
    Event(#[source] io::Error),
}

/// What the host could not do. The guest decides how often it is tried.
fn report(what: &str, error: &io::Error) {
    static REPORTS: LogLimit = LogLimit::new();
    if REPORTS.allows() {
        tracing::error!("virtio-net: {what}: {error}");
    }
}

fn hex(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The device.
pub struct Net {
    taps: Arc<Taps>,
    mac: [u8; 6],
    mtu: u16,
    queue_sizes: Vec<u16>,
    pairs: Vec<Work<Pair>>,
    control: Work<Control>,
}

impl Net {
    /// A device with one queue pair for each of `taps`, all of one interface (see [`open_tap`]); the guest's
    /// side has the address `mac` and is told the `mtu`.
    pub fn new(taps: Vec<OwnedFd>, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        if !(1..=MOST_PAIRS).contains(&taps.len()) {
            return Err(NetError::Queues(taps.len()));
        }
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NetError::Mac(mac));
        }
        if mtu < 68 {
            return Err(NetError::Mtu(mtu));
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * taps.len()];
        if taps.len() > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let taps = Arc::new(Taps::new(taps)?);
        let (pairs, control) = (Vec::new(), Work::default());
        Ok(Self { taps, mac, mtu, queue_sizes, pairs, control })
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt, threads } = activation;
        let breaks = || {
            let interrupt = interrupt.clone();
            move || interrupt.needs_reset()
        };
        let mut by_index: Vec<Option<ActiveQueue>> = self.queue_sizes.iter().map(|_| None).collect();
        for queue in queues {
            let index = usize::from(queue.index);
            by_index[index] = Some(queue);
        }
        let multi_queue = features & feature::MQ != 0;
        // §5.1.2: without MQ there is one pair and the control queue comes right after it.
        let pairs = if multi_queue { self.taps.count() } else { 1 };
        let mut usable = 0;
        for index in 0..pairs {
            let (Some(receive), Some(transmit)) =
                (by_index[2 * index].take(), by_index[2 * index + 1].take())
            else {
                break;
            };
            let pair =
                Pair::new(index, &self.taps, receive, transmit, features, self.mtu, &memory, &interrupt);
            let descriptors = pair.descriptors();
            let mut work = Work::default();
            work.begin((&threads[index], "virtio-net"), pair, &descriptors, breaks())?;
            self.pairs.push(work);
            usable += 1;
        }
        if usable == 0 {
            return Err(ActivateError::QueueMissing(0));
        }
        if features & feature::CTRL_VQ != 0
            && let Some(queue) = by_index.get_mut(2 * pairs).and_then(Option::take)
        {
            let usable = if multi_queue { usable } else { 0 };
            let breaks = breaks();
            let control = Control::new(queue, self.taps.clone(), usable, memory, interrupt);
            let descriptors = control.descriptors();
            // Comes after the first pair, which sets up the tap.
            self.control.begin((&threads[0], "virtio-net"), control, &descriptors, breaks)?;
        }
        Ok(())
    }
}

/// What the guest can finish, as the tap calls it.
fn offloads(features: u64) -> libc::c_uint {
    let pairs = [
        (feature::GUEST_CSUM, libc::TUN_F_CSUM),
        (feature::GUEST_TSO4, libc::TUN_F_TSO4),
        (feature::GUEST_TSO6, libc::TUN_F_TSO6),
    ];
    // §5.1.3.1: segments need checksums; a driver that accepts one without the other gets neither.
    let able = features & feature::GUEST_CSUM != 0;
    pairs.iter().filter(|(bit, _)| able && features & bit != 0).fold(0, |sum, (_, flag)| sum | flag)
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u16 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn threads(&self) -> Vec<Role> {
        vec![Role::Network; self.taps.count()]
    }

    fn features(&self) -> u64 {
        let checksums = feature::CSUM | feature::GUEST_CSUM;
        let segments = feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::HOST_TSO4 | feature::HOST_TSO6;
        let link = feature::MTU | feature::MAC | feature::STATUS;
        let multi_queue = if self.taps.count() > 1 { feature::CTRL_VQ | feature::MQ } else { 0 };
        checksums | segments | link | feature::MRG_RXBUF | multi_queue
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config (§5.1.4): mac, status, max_virtqueue_pairs, mtu.
        let pairs = u16::try_from(self.taps.count()).expect("at most MOST_PAIRS");
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = (config.len() - from).min(data.len());
        data[..count].copy_from_slice(&config[from..from + count]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation)
    }

    fn reset(&mut self) -> Result<(), Hung> {
        // The control queue first: it wakes the others.
        self.control.end()?;
        for pair in &mut self.pairs {
            pair.end()?;
        }
        self.pairs.clear();
        // §5.1.5: one pair until the driver asks for more.
        self.taps.set_pairs(1);
        Ok(())
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        let control: [&mut dyn Pausable; 1] = [&mut self.control];
        control.into_iter().chain(self.pairs.iter_mut().map(|pair| pair as &mut dyn Pausable)).collect()
    }

    fn save(&self) -> DeviceState {
        let pairs = self.pairs.iter().filter_map(Work::paused).flat_map(Pair::queues);
        let queues = pairs.chain(self.control.paused().map(Control::queue));
        let pairs = u16::try_from(self.taps.pairs()).expect("at most MOST_PAIRS");
        DeviceState { own: OwnState::Net { pairs }, ..DeviceState::of(queues) }
    }

    fn restore(&mut self, state: &OwnState) -> Result<(), WrongState> {
        let &OwnState::Net { pairs } = state else { return Err(WrongState) };
        let pairs = usize::from(pairs);
        if !(1..=self.taps.count()).contains(&pairs) {
            return Err(WrongState);
        }
        self.taps.set_pairs(pairs);
        Ok(())
    }
}
