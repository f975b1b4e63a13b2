//! The state of the link to the control plane, logged once for each change.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_api::admin::ControlStreamStatus;

/// That state, as the last try left it.
pub(super) struct ControlPlaneStatus {
    address: String,
    state: Mutex<State>,
}

struct State {
    connected: bool,
    since: Instant,
    error: Option<String>,
}

impl ControlPlaneStatus {
    pub fn new(address: String) -> Self {
        let error = Some("not tried yet".to_owned());
        Self { address, state: Mutex::new(State { connected: false, since: Instant::now(), error }) }
    }

    pub fn to_control_stream_status(&self) -> ControlStreamStatus {
        let state = self.state();
        ControlStreamStatus {
            address: self.address.clone(),
            connected: state.connected,
            since_seconds: state.since.elapsed().as_secs(),
            error: state.error.clone(),
        }
    }

    pub fn set_connected(&self) {
        let mut state = self.state();
        if !state.connected {
            tracing::info!(address = self.address, after = ?state.since.elapsed(), "connected to the control plane");
            *state = State { connected: true, since: Instant::now(), error: None };
        }
    }

    /// Notes that the link is down, or still is.
    pub fn set_disconnected(&self, reason: &str) {
        let mut state = self.state();
        if state.error.as_deref() != Some(reason) {
            tracing::warn!(
                address = self.address,
                reason,
                "waiting for the control plane; the configuration in force stays"
            );
        }
        let since = if state.connected { Instant::now() } else { state.since };
        *state = State { connected: false, since, error: Some(reason.to_owned()) };
    }

    /// Notes that the control plane closed the stream, which is opened again: nothing to warn of.
    pub fn set_closed_by_server(&self) {
        let reason = "the control plane closed the stream";
        tracing::debug!(address = self.address, reason, "connecting again");
        *self.state() = State { connected: false, since: Instant::now(), error: Some(reason.to_owned()) };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
