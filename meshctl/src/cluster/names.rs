//! Names that the chart gives its objects, and labels that enrol.

/// Who owns the fields that meshctl writes.
pub const FIELD_MANAGER: &str = "meshctl";
/// Component of the control plane's objects.
pub const COMPONENT_CONTROL: &str = "control";
/// Component of the agents' objects.
pub const COMPONENT_AGENT: &str = "agent";
/// Label that names the release of an object.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";

/// Selects the objects of a component of the mesh.
pub fn selector(component: &str) -> String {
    format!("app.kubernetes.io/name=nodemesh,app.kubernetes.io/component={component}")
}
