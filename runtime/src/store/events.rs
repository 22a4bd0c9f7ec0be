//! The events of a namespace's containers: a file of JSON lines, to which every command that changes a container
//! appends. There is no daemon that could tell them.
//!
//! The file is bounded: when it is full, its content is copied to the older one, which is replaced, and it begins anew.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::store::Paths;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;
use crate::store::file::io_error;
use crate::store::timestamp::Timestamp;

/// Most bytes of the file.
const FULL: u64 = 1 << 20;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Time of the event.
    pub time: Timestamp,
    /// The kind of object: `container`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name of the event: `create`, `start`, `die`, as docker's.
    pub action: String,
    /// Id of the object.
    pub id: String,
    /// Details: `image`, `name`, `exitCode` and the container's labels.
    pub attributes: BTreeMap<String, String>,
}

/// The files of the events.
#[derive(Debug, Clone)]
pub struct EventLog {
    directory: PathBuf,
}

impl EventLog {
    /// Those of the namespace of these paths.
    pub fn new(paths: &Paths) -> Self {
        Self { directory: paths.namespace_directory() }
    }

    /// The file to which events are appended.
    pub fn file(&self) -> PathBuf {
        self.directory.join("events.jsonl")
    }

    /// The file with the events before those.
    pub fn older(&self) -> PathBuf {
        self.directory.join("events.1.jsonl")
    }

    /// Appends an event.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn append(&self, event: &Event) -> Result<(), FileError> {
        file::create_directories(&self.directory)?;
        let path = self.file();
        let _lock = Lock::exclusive(&self.directory.join("events.lock"))?;
        let mut line =
            serde_json::to_vec(event).map_err(|source| FileError::Damaged { path: path.clone(), source })?;
        line.push(b'\n');
        let mut log =
            File::options().append(true).create(true).open(&path).map_err(io_error("open", &path))?;
        let length = log.metadata().map_err(io_error("read", &path))?.len();
        if length > FULL {
            let older = self.older();
            let content = fs::read(&path).map_err(io_error("read", &path))?;
            file::replace(&older, &content)?;
            log.set_len(0).map_err(io_error("empty", &path))?;
        }
        // One write, so that a reader sees whole lines.
        log.write_all(&line).map_err(io_error("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_appended_and_the_file_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let paths =
            Paths { root: folder.path().into(), state: folder.path().into(), namespace: "default".into() };
        let log = EventLog::new(&paths);
        let event = |padding: usize| Event {
            time: Timestamp::now(),
            kind: "container".into(),
            action: "start".into(),
            id: "0123456789ab".into(),
            attributes: BTreeMap::from([("padding".to_owned(), "x".repeat(padding))]),
        };
        for _ in 0..3 {
            log.append(&event(400_000)).unwrap();
        }
        assert!(!log.older().exists());
        log.append(&event(0)).unwrap();
        let read = |path| -> Vec<Event> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_eq!((read(log.older()).len(), read(log.file()).len()), (3, 1));
        assert_eq!(read(log.file())[0].action, "start");
    }
}
