//! The lab's first process: sets the nested machine up, runs one command, reports how it ended.
//!
//! It never returns: the first process of a kernel must not. The host stops the machine when it has heard the end.

mod machine;
mod port;
mod relay;

use std::fs::File;
use std::io;

use kiai_lab::{Job, Kind, PORT_NAME, read_frame, write_frame};

fn main() {
    match open_port() {
        Ok(mut port) => {
            let (kind, payload) = match serve(&mut port) {
                Ok(status) => (Kind::Exit, status.to_string()),
                Err(error) => (Kind::Failed, error.to_string()),
            };
            if let Err(error) = write_frame(&mut port, kind, payload.as_bytes()) {
                eprintln!("lab-init: cannot report the end: {error}");
            }
        }
        Err(error) => {
            // Only the console is left for the message. The host sees the machine stop and shows the console's last
            // lines.
            eprintln!("lab-init: no way to the host: {error}");
            return;
        }
    }
    loop {
        std::thread::park();
    }
}

fn open_port() -> io::Result<File> {
    machine::mount_initramfs()?;
    let announcements = port::Announcements::listen()?;
    machine::load_initramfs_modules()?;
    port::open(PORT_NAME, &announcements)
}

fn serve(port: &mut File) -> io::Result<i32> {
    let (kind, payload) = read_frame(port)?;
    if kind != Kind::Job {
        return Err(io::Error::other(format!("the first frame is {kind:?}, not the job")));
    }
    let job = Job::decode(&payload)?;
    machine::prepare(&job)?;
    relay::run(&job, port)
}
