//! PID 1 of the guest, or one of its helpers (`oci LEVEL`).

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kiai_agent::oci::{RoleProcess, pod_init};
use kiai_agent::reaper::Reaper;
use kiai_agent::sandbox::Sandbox;
use kiai_agent::server::Server;
use kiai_agent::{init, log, oci, panics, vsock};
use kiai_protocol::ports::{AGENT_PORT, HOST_CID, READY_MAGIC, READY_PORT, STREAM_PORT};
use kiai_protocol::service::create_agent;
use rustix::system::{RebootCommand, reboot};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_vsock::{VsockAddr, VsockStream};
use tracing::Level;
use ttrpc::r#async::transport::Listener;

/// How long the host may take to hang up after the last answer.
const FAREWELL: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("oci") {
        let level = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(Level::INFO);
        return oci::main(level);
    }
    if std::env::args().nth(1).as_deref() == Some(pod_init::ARGUMENT) {
        return pod_init::main();
    }
    // The kernel hands PID 1 whatever it does not understand of its command line: no other argument counts.
    if std::process::id() != 1 {
        bail!("this is the init of a Kiai guest; it runs only as PID 1");
    }
    init::boot()?;
    let kmsg = File::options().write(true).open("/dev/kmsg").context("open /dev/kmsg")?;
    // Helpers, and what a panic has to say, go there as well.
    rustix::stdio::dup2_stderr(kmsg.as_fd())?;
    let level = log_level();
    log::start(kmsg, level, None);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Err(error) = runtime.block_on(serve(level)) {
        // PID 1 cannot end: the kernel would panic. That is what the host understands best.
        tracing::error!("{error:#}");
        return Err(error);
    }
    reboot(RebootCommand::PowerOff).context("power off")?;
    bail!("the guest is still there after power-off");
}

/// Serves until the sandbox is destroyed.
async fn serve(level: Level) -> anyhow::Result<()> {
    let reaper = Reaper::start().context("watch for children that end")?;
    let sandbox = Sandbox::new(RoleProcess { program: "/proc/self/exe".into(), level, reaper });
    let over = Arc::new(Notify::new());
    let listen = |port| vsock::listen(port).with_context(|| format!("listen on vsock port {port}"));
    panics::spawn_vital("streams", sandbox.streams.clone().serve(listen(STREAM_PORT)?));
    let service = create_agent(Arc::new(Server { sandbox, over: over.clone() }));
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::new(listen(AGENT_PORT)?))
        .register_service(service);
    server.start().await.context("serve")?;
    report_ready().await.with_context(|| format!("connect to port {READY_PORT} of the host"))?;

    over.notified().await;
    // Lets calls under way end and their answers be written.
    server.shutdown().await.context("stop serving")?;
    // What was written goes through the same queue before this; once the host has answered this, in whatever
    // way, it has the rest.
    let barrier = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT));
    let _ = tokio::time::timeout(FAREWELL, barrier).await;
    Ok(())
}

/// Tells the host that the agent serves; the host never has to ask.
async fn report_ready() -> std::io::Result<()> {
    let mut host = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT)).await?;
    host.write_all(READY_MAGIC).await?;
    host.shutdown(std::net::Shutdown::Write)
}

/// `kiai.log=debug` on the kernel's command line.
fn log_level() -> Level {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let wanted = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("kiai.log="));
    wanted.and_then(|level| level.parse().ok()).unwrap_or(Level::INFO)
}
