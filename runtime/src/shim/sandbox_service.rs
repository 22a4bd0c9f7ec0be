//! containerd's Sandbox service (`containerd.runtime.sandbox.v1`): decode, call, encode. containerd 2 calls it for
//! runtimes with `sandboxer = "shim"`.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::Service as TtrpcService;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::types::platform::Platform;
use protobuf::Message;

use super::events::any;
use super::pod::Pod;
use super::pod_sandbox::SandboxState;
use super::report::pid;
use super::report::timestamp;
use super::task::finish;
use super::wire::PodSandboxConfig;
use super::wire::is_type;
use crate::agent::stats;
use crate::failure::RpcError;
use crate::failure::RpcResult;

/// The methods by service name.
pub(super) fn services(pod: &Arc<Pod>) -> HashMap<String, TtrpcService> {
    create_sandbox(Arc::new(SandboxService(pod.clone())))
}

struct SandboxService(Arc<Pod>);

/// The pod's configuration; a client other than the CRI may have none.
fn config(options: Option<Any>) -> RpcResult<Option<PodSandboxConfig>> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else { return Ok(None) };
    if !is_type(&options.type_url, "runtime.v1.PodSandboxConfig") {
        return Err(RpcError::invalid(format!(
            "options of type {:?}: expected runtime.v1.PodSandboxConfig",
            options.type_url
        )));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map(Some)
        .map_err(|e| RpcError::invalid(format!("options: runtime.v1.PodSandboxConfig: {e}")))
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        if !request.rootfs.is_empty() {
            return Err(RpcError::unimplemented("a root file system of the sandbox is not supported").into());
        }
        let config = config(request.options.into_option())?;
        let pod = self.0.clone();
        let (id, network) = (request.sandbox_id, request.netns_path);
        finish(async move { pod.create_sandbox(&id, config.as_ref(), &network) }).await?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let pod = self.0.clone();
        let started = finish(async move { pod.start_sandbox(&request.sandbox_id).await }).await?;
        let created_at = Some(timestamp(started)).into();
        Ok(api::StartSandboxResponse { pid: pid(), created_at, ..Default::default() })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH };
        let platform =
            Platform { os: "linux".into(), architecture: architecture.into(), ..Default::default() };
        Ok(api::PlatformResponse { platform: Some(platform).into(), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        let pod = self.0.clone();
        finish(async move { pod.stop_sandbox(&request.sandbox_id).await }).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let exit = self.0.own_sandbox(&request.sandbox_id)?.wait().await;
        Ok(api::WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let own = self.0.own_sandbox(&request.sandbox_id)?;
        // The words are those of the CRI.
        let (state, started, ended) = match own.state() {
            SandboxState::Created => ("SANDBOX_NOTREADY", None, None),
            SandboxState::Running(started) => ("SANDBOX_READY", Some(started), None),
            SandboxState::Ended(ended, started) => ("SANDBOX_NOTREADY", started, Some(ended)),
        };
        let mut response = api::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: pid(),
            state: state.into(),
            created_at: started.map(timestamp).into(),
            exited_at: ended.map(timestamp).into(),
            ..Default::default()
        };
        if request.verbose {
            let version = env!("CARGO_PKG_VERSION");
            let info = serde_json::json!({ "pid": pid(), "runtime": "kiai", "version": version });
            response.info.insert("info".into(), info.to_string());
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        self.0.ping_sandbox(&request.sandbox_id).await?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        self.0.shut_down_sandbox(&request.sandbox_id)?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let figures = self.0.sandbox_stats(&request.sandbox_id).await?;
        let mut response = api::SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(super::events::timestamp(std::time::SystemTime::now())).into();
        metrics.id = request.sandbox_id;
        metrics.data = Some(any(&stats(&figures))).into();
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::pod::PodOptions;

    #[test]
    fn options_are_the_cris_or_refused_by_name() {
        let any = |type_url: &str, value: &[u8]| {
            Some(Any { type_url: type_url.into(), value: value.into(), ..Default::default() })
        };
        assert_eq!(config(None).unwrap(), None);
        let named = config(any("runtime.v1.PodSandboxConfig", b"\x12\x04host")).unwrap().unwrap();
        assert_eq!(named.hostname, "host");
        for (options, word) in [
            (any("runtime.v1alpha2.PodSandboxConfig", b""), "v1alpha2"),
            (any("runtime.v1.PodSandboxConfig", b"\x12\xff"), "PodSandboxConfig"),
        ] {
            let error = config(options).unwrap_err().to_string();
            assert!(error.starts_with("options") && error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn the_service_has_the_name_and_the_methods_that_containerd_calls() {
        let folder = tempfile::tempdir().unwrap();
        let pod = Pod::new(PodOptions { bundle: folder.path().into(), ..PodOptions::default() });
        let services = services(&pod);
        let methods = &services["containerd.runtime.sandbox.v1.Sandbox"].methods;
        for method in [
            "CreateSandbox",
            "StartSandbox",
            "Platform",
            "StopSandbox",
            "WaitSandbox",
            "SandboxStatus",
            "PingSandbox",
            "ShutdownSandbox",
            "SandboxMetrics",
        ] {
            assert!(methods.contains_key(method), "{method}");
        }
    }
}
