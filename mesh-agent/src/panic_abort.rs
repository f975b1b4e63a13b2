//! What a panic in the proxy does: it ends the process.

use std::process::abort;

/// Has the first panic of any thread logged and end the process. Otherwise a runtime would go on without the
/// task that panicked: nobody might accept connections, or apply policy to them, and nobody would notice. The
/// keeper starts another proxy.
pub fn abort_on_panic() {
    mesh_log::log_panics(|| abort());
}
