//! The wire between `cargo xtask lab` and the lab's first process: frames on one virtio-serial port.
//!
//! One ordered stream in each direction carries everything, so the exit status always comes after the last byte of
//! output. Knows no QEMU and no Linux; both ends link it.

use std::io::{self, Read, Write};

/// The name of the virtio-serial port the frames travel on.
pub const PORT_NAME: &str = "kiai.lab";

/// Frames longer than this are refused: nothing legitimate comes near it.
const MAX_FRAME_BYTES: u32 = 16 << 20;

/// What a frame carries. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host to lab, first and once: an encoded [`Job`].
    Job = 1,
    /// Host to lab: bytes for the command's standard input. Empty: end of file.
    Stdin = 2,
    /// Lab to host: the machine is set up and the command starts now.
    Started = 3,
    /// Lab to host: bytes of standard output.
    Stdout = 4,
    /// Lab to host: bytes of standard error.
    Stderr = 5,
    /// Lab to host, last: the exit status in decimal.
    Exit = 6,
    /// Lab to host, last: the lab itself failed; a text that says how.
    Failed = 7,
}

impl Kind {
    fn from_wire(number: u8) -> io::Result<Self> {
        [Self::Job, Self::Stdin, Self::Started, Self::Stdout, Self::Stderr, Self::Exit, Self::Failed]
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .ok_or_else(|| invalid(format!("no frame kind {number}")))
    }
}

/// Sends one frame. Errors are those of the stream.
pub fn write_frame(stream: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES)
        .ok_or_else(|| invalid(format!("a frame of {} bytes", payload.len())))?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}

/// Receives one frame. An end of the stream is the error `UnexpectedEof`.
pub fn read_frame(stream: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [number, length @ ..] = header;
    let kind = Kind::from_wire(number)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, payload))
}

/// What the lab is to do: prepare itself, then run one command as root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// Its whole environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Disks to mount, in the order of their virtio addresses after the root disk: `MOUNTPOINT` each.
    pub disks: Vec<String>,
    /// Bind mounts, `SOURCE` and `TARGET` alternating; the target is made if it is not there.
    pub binds: Vec<String>,
    /// Kernel modules to load before the command starts.
    pub modules: Vec<String>,
}

impl Job {
    /// The wire form: each list as a count and its strings, each string as a length and its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let cwd = std::slice::from_ref(&self.cwd);
        let mut wire = Vec::new();
        for list in [&self.argv[..], &self.env, cwd, &self.disks, &self.binds, &self.modules] {
            wire.extend_from_slice(&(list.len() as u32).to_le_bytes());
            for text in list {
                wire.extend_from_slice(&(text.len() as u32).to_le_bytes());
                wire.extend_from_slice(text.as_bytes());
            }
        }
        wire
    }

    /// The inverse of [`Job::encode`].
    pub fn decode(mut wire: &[u8]) -> io::Result<Self> {
        let mut list = || -> io::Result<Vec<String>> {
            let count = read_u32(&mut wire)?;
            (0..count).map(|_| read_text(&mut wire)).collect()
        };
        Ok(Self {
            argv: list()?,
            env: list()?,
            cwd: list()?.concat(),
            disks: list()?,
            binds: list()?,
            modules: list()?,
        })
    }
}

fn read_u32(wire: &mut &[u8]) -> io::Result<u32> {
    let mut number = [0; 4];
    wire.read_exact(&mut number)?;
    Ok(u32::from_le_bytes(number))
}

fn read_text(wire: &mut &[u8]) -> io::Result<String> {
    let length = read_u32(wire)? as usize;
    let (text, rest) = wire.split_at_checked(length).ok_or_else(|| invalid("a text is cut short".into()))?;
    *wire = rest;
    String::from_utf8(text.to_vec()).map_err(|error| invalid(error.to_string()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_wire() {
        let job = Job {
            argv: vec!["sh".into(), "-c".into(), "echo 'ü'\n".into()],
            env: vec!["PATH=/bin".into(), "EMPTY=".into()],
            cwd: "/".into(),
            disks: vec![],
            binds: vec!["/a".into(), "/b".into()],
            modules: vec!["tun".into()],
        };
        assert_eq!(Job::decode(&job.encode()).unwrap(), job);
    }

    #[test]
    fn a_cut_job_is_an_error() {
        let wire = Job { argv: vec!["true".into()], ..Job::default() }.encode();
        for length in 0..wire.len() {
            assert!(Job::decode(&wire[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn frames_keep_their_kind_and_order() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Stdout, b"out").unwrap();
        write_frame(&mut wire, Kind::Exit, b"3").unwrap();
        let mut stream = &wire[..];
        assert_eq!(read_frame(&mut stream).unwrap(), (Kind::Stdout, b"out".to_vec()));
        assert_eq!(read_frame(&mut stream).unwrap(), (Kind::Exit, b"3".to_vec()));
        assert_eq!(read_frame(&mut stream).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_allocated() {
        let wire = [4, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(read_frame(&mut &wire[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
