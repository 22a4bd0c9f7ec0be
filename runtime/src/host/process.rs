//! What the serving process does to itself.

/// Makes the kernel's OOM killer prefer others. Best effort: the right to do so can be missing even for root.
pub fn protect_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-998") {
        tracing::info!(%error, "oom_score_adj stays as it is");
    }
}
