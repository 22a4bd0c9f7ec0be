//! Measures in the lab, where `kiai` is on PATH. Each sample is one line of JSON on standard output.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Group;
use super::table::{Sample, Unit};

/// The container that things are plugged into.
const NAME: &str = "measured";
const MIB: f64 = 1024.0 * 1024.0;
/// Requests of each kind in the I/O figures.
const REQUESTS: u32 = 4000;
/// QEMU's NVMe disk and its `edu` device: vendor and device.
const NVME: (&str, &str) = ("0x1b36", "0x0010");
const EDU: (&str, &str) = ("0x1234", "0x11e8");

/// Measures one group of figures, each `runs` times.
pub(crate) fn measure(group: Group, runs: u32) -> Result<()> {
    match group {
        Group::Start => (0..runs).try_for_each(|_| starts()),
        Group::Plug => plugs(runs),
        Group::Memory => (0..runs).try_for_each(|_| give_back()),
        Group::Io => io(runs),
        Group::Vfio => functions("group", runs),
        Group::Iommufd => functions("iommufd", runs),
    }
}

fn tell(figure: &str, value: f64, unit: Unit, exits: Option<u64>) -> Result<()> {
    let sample = Sample { figure: figure.to_owned(), value, unit, exits };
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

/// VM exits of all microVMs that are there.
fn exits() -> Result<u64> {
    let path = "/sys/kernel/debug/kvm/exits";
    Ok(fs::read_to_string(path).context(path)?.trim().parse()?)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn rootfs() -> Result<String> {
    Ok(format!("{}/busybox-rootfs", std::env::var("KIAI_TEST_IMAGES").context("KIAI_TEST_IMAGES")?))
}

/// Runs `kiai` to its end; its output.
fn kiai(arguments: &[&str]) -> Result<String> {
    let output = Command::new("kiai").args(arguments).output().context("kiai")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kiai {}: {}: {errors}", arguments.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A container in the foreground that talks by lines.
struct Container {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Container {
    fn start(options: &[&str], script: &str) -> Result<Self> {
        let rootfs = rootfs()?;
        let mut command = Command::new("kiai");
        command.args(["run", "--rm", "-i", "--network", "none"]).args(options);
        command.args(["--rootfs", &rootfs, "sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("kiai")?;
        let stdin = child.stdin.take().context("its standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("its standard output")?);
        Ok(Self { child, stdin, stdout })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the container ended");
        Ok(line.trim_end().to_owned())
    }

    fn end(mut self) -> Result<()> {
        self.stdin.write_all(b"\n")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the container: {status}");
        Ok(())
    }
}

/// From the command to the first byte, with nothing and with more memory and CPUs; what the pod holds then.
fn starts() -> Result<()> {
    for (figure, options) in [
        ("`kiai run --rootfs` to the first byte", &[][..]),
        ("the same with `-m 2g`", &["-m", "2g"]),
        ("the same with `--cpus 4`", &["--cpus", "4"]),
    ] {
        let started = Instant::now();
        let mut container = Container::start(options, "echo first; read -r line")?;
        container.line()?;
        tell(figure, milliseconds(started.elapsed()), Unit::Milliseconds, Some(exits()?))?;
        if options.is_empty() {
            let (own, guest) = held(shim()?)?;
            tell("memory of its process without guest RAM (PSS)", own, Unit::MiB, None)?;
            tell("guest RAM it has touched (PSS)", guest, Unit::MiB, None)?;
        }
        container.end()?;
    }
    from_template()
}

/// The same from a template, of which there is none before, and is none afterwards.
fn from_template() -> Result<()> {
    command("`kiai template create`", &["template", "create"])?;
    let started = Instant::now();
    let mut container = Container::start(&[], "echo first; read -r line")?;
    container.line()?;
    let figure = "`kiai run --rootfs` from a template to the first byte";
    tell(figure, milliseconds(started.elapsed()), Unit::Milliseconds, Some(exits()?))?;
    tell("memory of its process that is its own", private(shim()?)?, Unit::MiB, None)?;
    container.end()?;
    // It is there, so this only says which it is.
    let key = kiai(&["template", "create"])?;
    kiai(&["template", "rm", key.trim()]).map(drop)
}

/// What a process shares with nobody, MiB.
fn private(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let own = rollup.lines().filter(|line| line.starts_with("Private_"));
    let mut sum = 0.0;
    for line in own {
        let (_, kib) = line.split_once(':').context("a line of smaps_rollup")?;
        sum += kib.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
    }
    Ok(sum)
}

/// The process of the one pod there is.
fn shim() -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if program.ends_with(b"containerd-shim-kiai-v2") {
            return Ok(pid);
        }
    }
    bail!("there is no shim")
}

/// What a process holds, MiB: without guest RAM, and guest RAM, which is what asks for huge pages and is not inherited.
fn held(pid: u32) -> Result<(f64, f64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own, mut guest, mut pss) = (0.0, 0.0, 0.0);
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Pss:") {
            pss = kib.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|one| one == flag);
            if has("dc") && has("hg") { guest += pss } else { own += pss }
        }
    }
    Ok((own, guest))
}

/// A command of `kiai` from its start to its end.
fn command(figure: &str, arguments: &[&str]) -> Result<()> {
    let (before, started) = (exits()?, Instant::now());
    kiai(arguments)?;
    tell(figure, milliseconds(started.elapsed()), Unit::Milliseconds, Some(exits()? - before))
}

/// What the shim says of each batch, from its having the request to its answer: the figure of each line in order.
fn from_the_log(id: &str, figures: &[&str]) -> Result<()> {
    let log = fs::read_to_string(format!("/run/kiai/default/containers/{id}/bundle/shim.log"))?;
    let times: Vec<f64> = log.lines().filter_map(batch_milliseconds).collect();
    ensure!(
        times.len().is_multiple_of(figures.len()) && !times.is_empty(),
        "the shim's log has {} batches",
        times.len()
    );
    for (time, figure) in times.iter().zip(figures.iter().cycle()) {
        if !figure.is_empty() {
            tell(figure, *time, Unit::Milliseconds, None)?;
        }
    }
    Ok(())
}

/// The time of one batch in a line of the shim's log: `took=` and a duration as Rust writes it.
fn batch_milliseconds(line: &str) -> Option<f64> {
    let took = line.contains("plugged").then(|| line.split_once("took="))??.1;
    let took = took.split(|c: char| c.is_whitespace()).next()?;
    let number_ends = took.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = took[..number_ends].parse().ok()?;
    match &took[number_ends..] {
        "s" => Some(number * 1e3),
        "ms" => Some(number),
        "µs" => Some(number / 1e3),
        _ => None,
    }
}

/// Volumes, interfaces and disks of a running container.
fn plugs(runs: u32) -> Result<()> {
    fs::create_dir("/scratch/volume")?;
    let disk = loop_device(64)?;
    let id = kiai(&["run", "-d", "--name", NAME, "--rootfs", &rootfs()?, "sleep", "3600"])?;
    let device = format!("{disk}:/dev/x");
    let (volume, network, disk) =
        (["-v", "/scratch/volume:/data"], ["--network", "default"], ["--device", device.as_str()]);
    for _ in 0..runs {
        command("`kiai inspect`", &["inspect", NAME])?;
        command("`kiai exec … true`", &["exec", NAME, "true"])?;
        command("`kiai plug -v`", &[&["plug", NAME], &volume[..]].concat())?;
        command("`kiai unplug -v`", &["unplug", NAME, "-v", "/data"])?;
        command("`kiai plug --network`", &[&["plug", NAME], &network[..]].concat())?;
        command("`kiai unplug --network`", &["unplug", NAME, "--network", "eth1"])?;
        command("`kiai plug --device` (disk)", &[&["plug", NAME], &disk[..]].concat())?;
        command("`kiai unplug --device` (disk)", &["unplug", NAME, "--device", "/dev/x"])?;
        command("`kiai plug`, all three at once", &[&["plug", NAME], &volume[..], &network, &disk].concat())?;
        let all = ["unplug", NAME, "-v", "/data", "--network", "eth1", "--device", "/dev/x"];
        command("`kiai unplug`, all three at once", &all)?;
    }
    from_the_log(
        id.trim(),
        &[
            "volume: from the shim's request to usable",
            "",
            "interface: from the shim's request to usable",
            "",
            "disk: from the shim's request to usable",
            "",
            "all three: from the shim's request to usable",
            "",
        ],
    )?;
    kiai(&["rm", "-f", NAME]).map(drop)
}

/// A loop device over an empty file of `mib` MiB.
fn loop_device(mib: u64) -> Result<String> {
    let path = "/scratch/disk";
    fs::File::create(path)?.set_len(mib << 20)?;
    let output = Command::new("losetup").args(["--find", "--show", path]).output().context("losetup")?;
    ensure!(output.status.success(), "losetup: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// How fast memory that a container has freed is with the host again: a program writes to 512 MiB and ends.
fn give_back() -> Result<()> {
    const HELD_MIB: f64 = 512.0;
    let script = "echo ready; read -r _; dd if=/dev/zero of=/dev/null bs=512M count=1 2> /dev/null; \
                  echo freed; read -r _";
    let mut container = Container::start(&["-m", "640m"], script)?;
    container.line()?;
    let shim = shim()?;
    let resident = || -> Result<f64> {
        let pages = fs::read_to_string(format!("/proc/{shim}/statm"))?;
        let pages: f64 = pages.split(' ').nth(1).context("statm")?.parse()?;
        Ok(pages * 4096.0 / MIB)
    };
    let before = resident()?;
    container.stdin.write_all(b"\n")?;
    container.line()?;
    let (started, first) = (Instant::now(), exits()?);
    for percent in [25.0, 50.0, 90.0] {
        while resident()? - before > HELD_MIB * (1.0 - percent / 100.0) {
            // Nothing comes of this before the end: it only leaves the CPU to the guest.
            let pause = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            poll(&mut [PollFd::new(&container.stdout.get_ref(), PollFlags::IN)], Some(&pause))?;
            ensure!(started.elapsed() < Duration::from_secs(60), "{percent} % are not back after a minute");
        }
        let figure = format!("{percent} % of 512 MiB that a container freed are with the host");
        tell(&figure, milliseconds(started.elapsed()), Unit::Milliseconds, Some(exits()? - first))?;
    }
    container.end()
}

/// Direct reads and writes of a disk, one at a time: instructions of everything, an operation.
fn io(runs: u32) -> Result<()> {
    let disk = loop_device(64)?;
    let device = format!("{disk}:/dev/x");
    let image = format!("oci:{}/debian", std::env::var("KIAI_TEST_IMAGES").context("KIAI_TEST_IMAGES")?);
    kiai(&["run", "-d", "--name", NAME, "--device", &device, &image, "sleep", "3600"])?;
    for _ in 0..runs {
        for (figure, words) in [
            ("4 KiB direct read of a disk, depth 1", ["if=/dev/x", "of=/dev/null", "iflag=direct"]),
            ("4 KiB direct write of a disk, depth 1", ["if=/dev/zero", "of=/dev/x", "oflag=direct"]),
        ] {
            let timed = |requests: u32| -> Result<(f64, u64)> {
                let (before, started) = (exits()?, Instant::now());
                let count = format!("count={requests}");
                kiai(&[&["exec", NAME, "dd", "bs=4k", &count], &words[..]].concat())?;
                Ok((started.elapsed().as_secs_f64() * 1e9, exits()? - before))
            };
            // What starting the command costs is not the disk's.
            let ((base, base_exits), (all, all_exits)) = (timed(1)?, timed(REQUESTS + 1)?);
            let each = f64::from(REQUESTS);
            let exits = all_exits.saturating_sub(base_exits) / u64::from(REQUESTS);
            tell(figure, (all - base) / each, Unit::Instructions, Some(exits))?;
        }
    }
    kiai(&["rm", "-f", NAME]).map(drop)
}

/// PCI functions that come to a running container and go.
fn functions(way: &str, runs: u32) -> Result<()> {
    let (nvme, edu) = (function(NVME)?, function(EDU)?);
    for address in [&nvme, &edu] {
        kiai(&["devices", "bind", address])?;
    }
    let id = kiai(&["run", "-d", "--name", NAME, "--rootfs", &rootfs()?, "sleep", "3600"])?;
    let (disk, program) = (format!("pci:{nvme}"), format!("pci:{edu}"));
    let user_space = format!("{program},user-space");
    // The first function of a pod pins guest RAM.
    kiai(&["plug", NAME, "--device", &user_space])?;
    kiai(&["unplug", NAME, "--device", &program])?;
    for _ in 0..runs {
        command(&format!("`kiai plug` an NVMe disk ({way})"), &["plug", NAME, "--device", &disk])?;
        command(&format!("`kiai unplug` an NVMe disk ({way})"), &["unplug", NAME, "--device", &disk])?;
        command(
            &format!("`kiai plug` a user-space function ({way})"),
            &["plug", NAME, "--device", &user_space],
        )?;
        command(
            &format!("`kiai unplug` a user-space function ({way})"),
            &["unplug", NAME, "--device", &program],
        )?;
    }
    // The first two lines of the log are the first function's.
    let log = fs::read_to_string(format!("/run/kiai/default/containers/{}/bundle/shim.log", id.trim()))?;
    let times: Vec<f64> = log.lines().filter_map(batch_milliseconds).collect();
    ensure!(times.len() == 2 + 4 * runs as usize, "the shim's log has {} batches", times.len());
    tell(
        &format!("first user-space function ({way}): from request to usable"),
        times[0],
        Unit::Milliseconds,
        None,
    )?;
    for four in times[2..].chunks_exact(4) {
        for (name, time) in [
            ("NVMe disk", four[0]),
            ("NVMe disk, detached", four[1]),
            ("user-space function", four[2]),
            ("user-space function, detached", four[3]),
        ] {
            tell(&format!("{name} ({way}): from request to answer"), time, Unit::Milliseconds, None)?;
        }
    }
    kiai(&["rm", "-f", NAME]).map(drop)
}

/// The address of the PCI function with this vendor and device.
fn function((vendor, device): (&str, &str)) -> Result<String> {
    for entry in fs::read_dir("/sys/bus/pci/devices")?.flatten() {
        let is = |file: &str, wanted: &str| {
            fs::read_to_string(Path::new(&entry.path()).join(file)).is_ok_and(|text| text.trim() == wanted)
        };
        if is("vendor", vendor) && is("device", device) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("no PCI function {vendor}:{device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_log_says_how_long_a_batch_took() {
        let line = "2026-11-28T00:00:00Z  INFO kiai: unplugged container=\"a\" took=8.25ms";
        assert_eq!(batch_milliseconds(line), Some(8.25));
        assert_eq!(batch_milliseconds("plugged in took=1.5s container=x"), Some(1500.0));
        assert_eq!(batch_milliseconds("plugged in took=250µs"), Some(0.25));
        assert_eq!(batch_milliseconds("the guest still has 3 MiB took=1ms"), None);
    }
}
