//! Plans the hooks of a spec (config.md#posix-platform-hooks): those that run on the host, and those that the agent gets.

use oci_spec::runtime::Hook;
use oci_spec::runtime::Hooks;
use oci_spec::runtime::Spec;

use super::PlanError;

/// The hooks that run in the host's namespaces, each list in the order in which it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostHooks {
    /// Run when a container is created (deprecated in the OCI runtime-spec, and still used).
    pub prestart: Vec<Hook>,
    /// Run after those.
    pub create_runtime: Vec<Hook>,
    /// Run when it was started.
    pub poststart: Vec<Hook>,
    /// Run when it was removed.
    pub poststop: Vec<Hook>,
}

impl HostHooks {
    /// The hooks that run while a container is created, and so can change its network namespace.
    fn make_the_environment(&self) -> bool {
        !self.prestart.is_empty() || !self.create_runtime.is_empty()
    }
}

/// Whether a spec has hooks that expect the container's network namespace on the host.
pub(super) fn need_network(spec: &Spec) -> bool {
    take(spec.hooks().clone()).is_ok_and(|(hooks, _)| hooks.make_the_environment())
}

/// The poststop hooks of a spec, for a container whose shim was killed.
pub fn poststop(spec: &Spec) -> Vec<Hook> {
    take(spec.hooks().clone()).map(|(hooks, _)| hooks.poststop).unwrap_or_default()
}

/// Takes the host's hooks out of a spec. startContainer hooks stay: they are programs of the container. createContainer
/// hooks are programs of the host that run in the container's namespaces, which are the guest's.
pub(super) fn plan_hooks(spec: &mut Spec) -> Result<HostHooks, PlanError> {
    let (hooks, rest) = take(spec.hooks().clone())?;
    spec.set_hooks(rest);
    Ok(hooks)
}

fn take(hooks: Option<Hooks>) -> Result<(HostHooks, Option<Hooks>), PlanError> {
    let Some(mut hooks) = hooks else { return Ok(Default::default()) };
    if hooks.create_container().as_ref().is_some_and(|hooks| !hooks.is_empty()) {
        return Err(PlanError::Hooks("createContainer"));
    }
    let host = HostHooks {
        prestart: checked("prestart", hooks.prestart_mut().take())?,
        create_runtime: checked("createRuntime", hooks.create_runtime_mut().take())?,
        poststart: checked("poststart", hooks.poststart_mut().take())?,
        poststop: checked("poststop", hooks.poststop_mut().take())?,
    };
    let start = hooks.start_container().as_ref().is_some_and(|hooks| !hooks.is_empty());
    Ok((host, start.then_some(hooks)))
}

fn checked(kind: &'static str, hooks: Option<Vec<Hook>>) -> Result<Vec<Hook>, PlanError> {
    let hooks = hooks.unwrap_or_default();
    for hook in &hooks {
        let refuse = |reason| PlanError::Hook { kind, path: hook.path().clone(), reason };
        if !hook.path().is_absolute() {
            return Err(refuse("is not an absolute path"));
        }
        if hook.timeout().is_some_and(|seconds| seconds <= 0) {
            return Err(refuse("has a timeout that is not greater than 0"));
        }
    }
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","hooks":{hooks}}}"#)).unwrap()
    }

    #[test]
    fn hooks_of_the_host_are_taken_and_those_of_the_container_stay() {
        let mut all = spec(
            r#"{"prestart":[{"path":"/a"}],"createRuntime":[{"path":"/b"}],"startContainer":[{"path":"c"}],
            "poststart":[{"path":"/d","timeout":5}],"poststop":[{"path":"/e"},{"path":"/f"}]}"#,
        );
        assert!(need_network(&all));
        assert_eq!(poststop(&all).len(), 2);
        let host = plan_hooks(&mut all).unwrap();
        let paths = |hooks: &[Hook]| hooks.iter().map(|h| h.path().display().to_string()).collect::<String>();
        let HostHooks { prestart, create_runtime, poststart, poststop } = &host;
        let lists = [prestart, create_runtime, poststart, poststop].map(|hooks| paths(hooks));
        assert_eq!(lists, ["/a", "/b", "/d", "/e/f"]);
        assert_eq!(all.hooks(), spec(r#"{"startContainer":[{"path":"c"}]}"#).hooks());
    }

    #[test]
    fn a_spec_without_hooks_is_the_same() {
        for hooks in ["null", "{}", r#"{"poststop":[]}"#] {
            let mut spec = spec(hooks);
            assert_eq!(plan_hooks(&mut spec).unwrap(), HostHooks::default());
            assert!(spec.hooks().is_none() && !need_network(&spec));
        }
        assert!(!need_network(&spec(r#"{"poststop":[{"path":"/x"}]}"#)));
    }

    #[test]
    fn what_cannot_run_is_refused_by_name() {
        for (hooks, named) in [
            (r#"{"createContainer":[{"path":"/x"}]}"#, "createContainer"),
            (r#"{"poststart":[{"path":"relative"}]}"#, "poststart hook relative"),
            (r#"{"createRuntime":[{"path":"/x","timeout":0}]}"#, "createRuntime hook /x"),
        ] {
            let error = plan_hooks(&mut spec(hooks)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
