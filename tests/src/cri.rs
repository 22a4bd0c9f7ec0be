//! A client of containerd's CRI (`runtime.v1.RuntimeService`): gRPC by curl, and as much of protobuf as that takes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

/// A message being written: fields by number, in any order.
#[derive(Default, Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// With a text, or the bytes of another message.
    pub fn with(mut self, field: u8, value: impl AsRef<[u8]>) -> Message {
        let value = value.as_ref();
        self.0.push(field << 3 | 2);
        self.number(value.len());
        self.0.extend(value);
        self
    }

    /// With a number.
    pub fn with_number(mut self, field: u8, value: usize) -> Message {
        self.0.push(field << 3);
        self.number(value);
        self
    }

    fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Calls a method; the answer, or the error's message. `folder` is for the files of the call.
pub fn call(socket: &Path, folder: &Path, method: &str, request: &Message) -> Result<Vec<u8>, String> {
    let (body, headers, answer) = (folder.join("request"), folder.join("headers"), folder.join("answer"));
    let length = u32::try_from(request.0.len()).unwrap().to_be_bytes();
    fs::write(&body, [&[0], &length[..], &request.0].concat()).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "250", "--unix-socket"])
        .arg(socket);
    curl.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary"]);
    curl.arg(format!("@{}", body.display())).arg("-D").arg(&headers).arg("-o").arg(&answer);
    curl.arg(format!("http://localhost/runtime.v1.RuntimeService/{method}")).stdin(Stdio::null());
    let status = curl.status().unwrap();
    let headers = fs::read_to_string(&headers).unwrap_or_default();
    let trailer = |name: &str| {
        let found = headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default().to_owned()
    };
    // A server that refuses a call resets its stream, which curl takes for a failure.
    assert!(!trailer("grpc-status").is_empty(), "{method}: curl: {status}");
    println!("{method}: {}", trailer("grpc-message"));
    if trailer("grpc-status") == "0" {
        Ok(fs::read(&answer).unwrap().get(5..).unwrap_or_default().to_vec())
    } else {
        Err(trailer("grpc-message"))
    }
}

/// The text of the first field of an answer: an id.
pub fn first_text(answer: &[u8]) -> String {
    assert!(answer.len() > 2 && answer[0] == 1 << 3 | 2, "{answer:?}");
    String::from_utf8_lossy(&answer[2..2 + usize::from(answer[1])]).into_owned()
}
