//! One discovery stream: requests, responses and their acknowledgements (docs/wire.md, Requests and
//! responses).

use mesh_api::plan::{RejectedResource, XdsResourceType};
use mesh_api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use tokio::sync::mpsc;

use super::response_applier::ResponseApplier;

/// Most requests that wait to be sent: the first ones, and an answer to each response that came meanwhile.
const QUEUE: usize = 16;

/// Our end of a stream.
pub(super) struct DeltaStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl DeltaStream {
    /// Opens a stream with its first requests: everything of each type, less what is held already.
    pub fn with_initial_requests(
        node: &Node,
        held: &ResponseApplier,
    ) -> (Self, mpsc::Receiver<DeltaDiscoveryRequest>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        for resource_type in XdsResourceType::ALL {
            let first = DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: resource_type.type_url.to_owned(),
                initial_resource_versions: held.lock_store().resource_versions(&resource_type),
                ..DeltaDiscoveryRequest::default()
            };
            // There is room: the queue is longer than the list of types.
            let _ = requests.try_send(first);
        }
        (Self { requests }, receiver)
    }

    /// Takes a response and acknowledges or rejects it. Returns whether the stream is still open.
    pub async fn apply_and_answer(
        &self,
        publisher: &mut ResponseApplier,
        response: DeltaDiscoveryResponse,
    ) -> bool {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let rejected = publisher.apply_response(response);
        for rejected in &rejected {
            tracing::warn!(r#type = type_url, name = rejected.name, reason = %rejected.reason, "resource rejected");
        }
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            error_detail: complaint(&rejected),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.is_ok()
    }
}

/// Returns `name: reason; name: reason` as a status; none if nothing was rejected.
fn complaint(rejected: &[RejectedResource]) -> Option<Status> {
    let texts: Vec<_> = rejected.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| Status { message: texts.join("; "), ..Status::default() })
}
