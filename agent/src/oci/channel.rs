//! The channel between the agent and a helper: messages with descriptors on a socket pair.
//!
//! SOCK_SEQPACKET, so that a message is received whole, and an empty one means that the other side is closed. Every
//! descriptor is close-on-exec on both sides, so that a process started at the same time inherits none.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of one message.
const MAX_MESSAGE: usize = 64 * 1024;

/// The most descriptors with one message.
const MAX_DESCRIPTORS: usize = 4;

/// Makes a channel; both ends are blocking.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message.
pub fn send<M: Serialize>(socket: impl AsFd, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::new(ErrorKind::InvalidInput, "message too long for the helper channel"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::new(ErrorKind::InvalidInput, "too many descriptors for the helper channel"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message. `Ok(None)` if the other side closed without sending one.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Error::new(ErrorKind::InvalidData, "message cut short on the helper channel"));
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..message.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Answer;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_with_its_descriptors_and_then_the_end() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&ours, &Answer::Pid(12), &[writer.as_fd()]).unwrap();
        drop((ours, writer));

        let (answer, mut descriptors) = receive::<Answer>(&theirs).unwrap().unwrap();
        assert_eq!(answer, Answer::Pid(12));
        let mut writer = std::fs::File::from(descriptors.remove(0));
        writer.write_all(b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(receive::<Answer>(&theirs).unwrap().is_none());
    }

    #[test]
    fn too_long_a_message_is_refused_by_the_sender() {
        let (ours, _theirs) = pair().unwrap();
        assert!(send(&ours, &Answer::Failed("x".repeat(MAX_MESSAGE)), &[]).is_err());
    }
}
