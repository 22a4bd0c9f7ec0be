//! The agent's program: PID 1 of the guest, or one of its helpers (`oci LEVEL`).

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

/// How long the host may take to answer the last connection before the guest powers off.
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
    // The kernel passes unknown parameters of its command line to PID 1: other arguments are ignored.
    if std::process::id() != 1 {
        bail!("this is the init of a Kiai guest; it runs only as PID 1");
    }
    init::boot()?;
    let kmsg = File::options().write(true).open("/dev/kmsg").context("open /dev/kmsg")?;
    // Messages of helpers and of panics go there as well.
    rustix::stdio::dup2_stderr(kmsg.as_fd())?;
    let level = log_level();
    log::start(kmsg, level, None);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Err(error) = runtime.block_on(serve(level)) {
        // The end of PID 1 is a kernel panic, which the host reports with this message.
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
    // Calls under way end and their answers are written.
    server.shutdown().await.context("stop serving")?;
    // The answers go through the same queue before this connection; once the host accepts or refuses it, it has
    // them.
    let barrier = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT));
    let _ = tokio::time::timeout(FAREWELL, barrier).await;
    Ok(())
}

/// Tells the host that the agent serves, so that the host never polls.
async fn report_ready() -> std::io::Result<()> {
    let mut host = VsockStream::connect(VsockAddr::new(HOST_CID, READY_PORT)).await?;
    host.write_all(READY_MAGIC).await?;
    host.shutdown(std::net::Shutdown::Write)
}

/// The log level: `kiai.log=debug` on the kernel's command line, otherwise info.
fn log_level() -> Level {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let wanted = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("kiai.log="));
    wanted.and_then(|level| level.parse().ok()).unwrap_or(Level::INFO)
}
