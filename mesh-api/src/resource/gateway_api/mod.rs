//! The Gateway API's routes, as far as they are for clients in the mesh (`gateway.networking.k8s.io`): those
//! whose parent is a Service. What of them is not in force is for `compile/gateway_routes` to say.
//!
//! Each file has the types of one field and their reader. What the API's own definition refuses is an error.
//! A route that has no Service among its parents is others', and nothing of it is read but that.

mod backend_ref;
mod cors_filter;
mod filters;
mod grpc_match;
mod header_filter;
mod http_match;
mod parent_ref;
mod path_filters;
mod reference_grant;
mod route;
mod rule;
mod values;

pub use backend_ref::{BackendRef, ObjectRef};
pub use cors_filter::CorsFilter;
pub use filters::{MirrorFilter, RouteFilter};
pub use header_filter::HeaderFilter;
pub use http_match::{PathMatch, RouteMatch};
pub use parent_ref::ParentRef;
pub use path_filters::{PathChange, RedirectFilter, RewriteFilter};
pub use reference_grant::{GrantFrom, GrantTo, ReferenceGrant};
pub use route::{GRPCRoute, GatewayRoute, HTTPRoute};
pub use rule::{RouteRetry, RouteRule};

#[cfg(test)]
mod tests;
