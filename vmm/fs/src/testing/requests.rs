//! Any FUSE requests, in any order, on a directory beside a secret.

use std::fs;

use arbitrary::Arbitrary;
use arbitrary::Unstructured;
use kiai_devices::testing::Buffer::Read as R;
use kiai_devices::testing::Buffer::Write as W;
use kiai_devices::testing::Driver;
use kiai_devices::testing::Machine;
use kiai_devices::testing::Virtqueue;

use super::FS;
use super::subject::message;
use crate::Fs;

/// Requests of one run.
const MOST: usize = 100;
/// The longest request and reply.
const ROOM: u64 = 64 << 10;
const INIT: u32 = 26;
/// Opcodes that end the session.
const DESTROY: u32 = 38;
/// Opcodes go up to here.
const LAST: u8 = 53;
const SECRET: &str = "a secret";

#[derive(Debug, Arbitrary)]
struct Request {
    opcode: Opcode,
    node: Node,
    body: Vec<Piece>,
    /// Instead of what the header says.
    length: Option<u32>,
    /// Bytes left for the reply.
    room: Room,
    /// On the queue for FORGETs and interrupts.
    high_priority: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Opcode {
    Known(u8),
    Any(u32),
}

/// Nodes the guest may know: the last answers begin with their numbers.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Node {
    Root,
    Answered(u8),
    Any(u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Room {
    None,
    Header,
    Some(u16),
}

#[derive(Debug, Arbitrary)]
enum Piece {
    Word(u32),
    Small(u8),
    Long(u64),
    /// A number of an answer: a node or a handle.
    Answered(u8),
    Name(Name),
    Zeroes(u8),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Name {
    File(bool),
    Up,
    Secret,
    Link,
    Attribute,
    Absolute,
    Long,
    Any(Vec<u8>),
}

impl Name {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::File(first) => if *first { b"a" } else { b"b" }.to_vec(),
            Self::Up => b"..".to_vec(),
            Self::Secret => b"../secret".to_vec(),
            Self::Link => b"link".to_vec(),
            Self::Attribute => b"user.x".to_vec(),
            Self::Absolute => b"/etc/passwd".to_vec(),
            Self::Long => vec![b'n'; 300],
            Self::Any(bytes) => bytes.clone(),
        }
    }
}

/// Runs requests. Each is answered, no answer is longer than its room or holds the secret, nothing outside of
/// the share changes, and a new session works.
pub fn requests(bytes: &[u8]) {
    let Ok(requests) = Vec::<Request>::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("a"), "content").unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    std::os::unix::fs::symlink("../secret", shared.join("link")).unwrap();

    let machine = Machine::new();
    let slot = machine.plug(Fs::new("share", &shared).unwrap());
    {
        let driver = Driver::negotiate(&machine, slot, 0);
        let mut queues = driver.queues();
        driver.ready();
        let mut guest = Guest {
            machine: &machine,
            request: machine.allocate(ROOM),
            reply: machine.allocate(ROOM),
            answers: vec![],
        };
        let init: Vec<u8> =
            [7u32, 41, 1 << 20, u32::MAX, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        guest.exchange(&mut queues[1], &message(INIT, 0, &[init, vec![0; 44]].concat()), 4096);
        for request in requests.iter().take(MOST) {
            let queue = &mut queues[usize::from(!request.high_priority)];
            let room = match request.room {
                Room::None => 0,
                Room::Header => 16,
                Room::Some(bytes) => bytes.into(),
            };
            let message = guest.message(request);
            guest.exchange(queue, &message, room);
        }
        driver.reset();
    }
    (FS.works)(&machine, slot);
    machine.segment.remove(slot);
    machine.assert_unharmed();
    assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET, "a guest wrote outside of its share");
    let mut beside: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["secret", "shared"], "a guest made something outside of its share");
}

struct Guest<'m> {
    machine: &'m Machine,
    request: u64,
    reply: u64,
    /// First numbers of what was answered: nodes and handles.
    answers: Vec<u64>,
}

impl Guest<'_> {
    fn answered(&self, which: u8) -> u64 {
        usize::from(which).checked_rem(self.answers.len()).map_or(1, |which| self.answers[which])
    }

    fn message(&self, request: &Request) -> Vec<u8> {
        let opcode = match request.opcode {
            Opcode::Known(opcode) => u32::from(opcode % (LAST + 1)),
            Opcode::Any(opcode) => opcode,
        };
        let node = match request.node {
            Node::Root => 1,
            Node::Answered(which) => self.answered(which),
            Node::Any(node) => node,
        };
        let mut body = Vec::new();
        for piece in request.body.iter().take(32) {
            match piece {
                Piece::Word(word) => body.extend(word.to_le_bytes()),
                Piece::Small(number) => body.extend(u32::from(*number).to_le_bytes()),
                Piece::Long(word) => body.extend(word.to_le_bytes()),
                Piece::Answered(which) => body.extend(self.answered(*which).to_le_bytes()),
                Piece::Name(name) => {
                    body.extend(name.bytes());
                    body.push(0);
                }
                Piece::Zeroes(count) => body.resize(body.len() + usize::from(*count), 0),
                Piece::Bytes(bytes) => body.extend(bytes),
            }
        }
        body.truncate(usize::try_from(ROOM).unwrap() - 40);
        // A file of 2^60 bytes costs nothing, but space for it does.
        let fallocate = opcode == 43 && body.len() >= 24;
        if fallocate {
            body[11..16].fill(0);
            body[19..24].fill(0);
        }
        let mut message = message(opcode, node, &body);
        if let Some(length) = request.length {
            message[..4].copy_from_slice(&length.to_le_bytes());
        }
        message
    }

    fn exchange(&mut self, queue: &mut Virtqueue<'_>, message: &[u8], room: u32) {
        self.machine.store(self.request, message);
        let request = R(self.request, u32::try_from(message.len()).unwrap());
        let used = if room == 0 {
            queue.request(&[request])
        } else {
            queue.request(&[request, W(self.reply, room)])
        };
        assert!(used <= room, "{used} bytes were written into {room}");
        let reply = self.machine.load(self.reply, used as usize);
        let leaked = reply.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes());
        assert!(!leaked, "a guest read outside of its share");
        let opcode = u32::from_le_bytes([message[4], message[5], message[6], message[7]]);
        if opcode == DESTROY {
            self.answers.clear();
        } else if reply.len() >= 24 && reply[4..8] == [0; 4] && self.answers.len() < 32 {
            let number: [u8; 8] = reply[16..24].try_into().unwrap();
            self.answers.push(u64::from_le_bytes(number));
        }
    }
}
