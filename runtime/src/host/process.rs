//! Settings of the shim's own process.

/// Makes the kernel's OOM killer prefer other processes. A failure is logged only, because root can lack the
/// capability.
pub fn protect_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-998") {
        tracing::info!(%error, "oom_score_adj stays as it is");
    }
}
