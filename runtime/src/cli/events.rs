//! `kiai events`: prints what happens to containers.

use std::io;
use std::io::Seek;
use std::io::Write;

use anyhow::Context as _;
use serde_json::Value;
use serde_json::json;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::filter::Filters;
use crate::cli::follow::Growing;
use crate::cli::logs::parse_moment;
use crate::cli::template::Template;
use crate::store::Record;
use crate::store::events::Event;
use crate::store::events::EventLog;
use crate::store::timestamp::Timestamp;

/// Print what happens to containers, as it happens
#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// Also events since a time (2026-01-31T12:00:00Z) or so long ago (90s, 10m, 2h)
    #[arg(long, value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Only events before a time; then the command ends
    #[arg(long, value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Only events with: container=NAME, event=WORD, image=NAME, label=KEY[=VALUE], type=container
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// json for a line of JSON each, or a template with {{.Action}} and others
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// The keys of `--filter`.
const KEYS: &[&str] = &["container", "event", "image", "label", "type"];

/// Records that something happened to a container. A failure is only printed: what happened, happened.
pub(super) fn tell(context: &Context, record: &Record, action: &str, details: &[(&str, String)]) {
    let mut attributes = record.labels.clone();
    attributes.insert("image".to_owned(), record.image.name.clone());
    attributes.insert("name".to_owned(), record.name.clone());
    attributes.extend(details.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let event = Event {
        time: Timestamp::now(),
        kind: "container".to_owned(),
        action: action.to_owned(),
        id: record.id.clone(),
        attributes,
    };
    if let Err(error) = EventLog::new(context.store.paths()).append(&event) {
        eprintln!("kiai: cannot record the event {action} of {}: {error}", record.name);
    }
}

impl Events {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        match self.show(context).await {
            Err(error) if is_broken_pipe(&error) => Ok(0),
            other => Ok(other.map(|()| 0)?),
        }
    }

    async fn show(&self, context: &Context) -> anyhow::Result<()> {
        let filters = Filters::parse(&self.filter, KEYS)?;
        let template = match self.format.as_deref() {
            None => None,
            Some("json") => Some(Template::parse("{{json .}}")?),
            Some(text) => Some(Template::parse(text)?),
        };
        let log = EventLog::new(context.store.paths());
        std::fs::create_dir_all(context.store.paths().namespace_directory())?;
        let path = log.file();
        let file = std::fs::File::options().read(true).append(true).create(true).open(&path);
        let mut file = file.with_context(|| format!("cannot read {}", path.display()))?;
        let print = |line: &[u8]| self.print(line, &filters, template.as_ref());
        if self.since.is_some() {
            for line in std::fs::read(log.older()).unwrap_or_default().split(|byte| *byte == b'\n') {
                print(line)?;
            }
        } else {
            file.seek(io::SeekFrom::End(0))?;
        }
        let mut growing = Growing::continued(file, &path)?;
        let mut rest = Vec::new();
        let over = self.until.map(|until| until.remaining());
        let mut end = Box::pin(async move {
            match over {
                // The time that the user has asked for.
                Some(remaining) => tokio::time::sleep(remaining).await,
                None => std::future::pending().await,
            }
        });
        let mut ended = false;
        loop {
            growing.begin_anew_if_emptied()?;
            loop {
                let added = growing.read()?;
                if added.is_empty() {
                    break;
                }
                rest.extend_from_slice(&added);
                while let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                    print(&rest[..length])?;
                    rest.drain(..=length);
                }
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                changed = growing.changed() => changed?,
                () = &mut end => ended = true,
            }
        }
    }

    fn print(&self, line: &[u8], filters: &Filters, template: Option<&Template>) -> anyhow::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        let event: Event = serde_json::from_slice(line).context("the file of events is damaged")?;
        let early = self.since.is_some_and(|since| event.time < since);
        let late = self.until.is_some_and(|until| event.time > until);
        if early || late || !matches(&event, filters) {
            return Ok(());
        }
        let text = match template {
            Some(template) => template.render(&shown(&event))? + "\n",
            None => line_of(&event),
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn matches(event: &Event, filters: &Filters) -> bool {
    let attribute = |key: &str| event.attributes.get(key).map_or("", String::as_str);
    filters.any("type", |value| value == event.kind)
        && filters.any("event", |value| value == event.action)
        && filters.any("image", |value| {
            let image = attribute("image");
            image == value || image.rsplit('/').next().is_some_and(|short| short.starts_with(value))
        })
        && filters.any("container", |value| {
            value == attribute("name") || value.len() >= 4 && event.id.starts_with(value)
        })
        && filters.labels(&event.attributes)
}

/// The fields of docker's events.
fn shown(event: &Event) -> Value {
    let nanoseconds = event.time.nanoseconds();
    json!({
        "status": event.action, "id": event.id, "from": event.attributes.get("image"),
        "Status": event.action, "ID": event.id, "From": event.attributes.get("image"),
        "Type": event.kind, "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local", "time": nanoseconds / 1_000_000_000, "timeNano": nanoseconds,
    })
}

fn line_of(event: &Event) -> String {
    let details: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let text =
        format!("{} {} {} {} ({})", event.time, event.kind, event.action, event.id, details.join(", "));
    // A label may contain anything.
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean + "\n"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn event() -> Event {
        let attributes = [("image", "docker.io/library/debian:12"), ("name", "web"), ("a", "b\n")];
        Event {
            time: "2026-01-31T12:00:00Z".parse().unwrap(),
            kind: "container".into(),
            action: "start".into(),
            id: "0123456789ab".into(),
            attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    #[test]
    fn events_are_filtered() {
        let table = [
            (&["container=web"][..], true),
            (&["container=0123"], true),
            (&["container=other", "container=web"], true),
            (&["container=other"], false),
            (&["event=start", "type=container"], true),
            (&["event=die"], false),
            (&["image=debian"], true),
            (&["image=busybox"], false),
            (&["label=a"], true),
            (&["label=a=c"], false),
        ];
        for (words, expected) in table {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(matches(&event(), &Filters::parse(&words, KEYS).unwrap()), expected, "{words:?}");
        }
        assert!(Filters::parse(&["colour=red".to_owned()], KEYS).is_err());
    }

    #[test]
    fn an_event_is_one_line_with_dockers_fields() {
        let text = line_of(&event());
        let expected = "2026-01-31T12:00:00.000000000Z container start 0123456789ab \
                        (a=b , image=docker.io/library/debian:12, name=web)\n";
        assert_eq!(text, expected);
        let render = |text: &str| Template::parse(text).unwrap().render(&shown(&event())).unwrap();
        assert_eq!(render("{{.Action}} {{.Actor.Attributes.name}} {{.time}}"), "start web 1769860800");
        let empty = BTreeMap::from([("x".to_owned(), "y".to_owned())]);
        assert!(Filters::parse(&["label=x=y".to_owned()], KEYS).unwrap().labels(&empty));
    }
}
