//! What a container's program finds: its environment, arguments and directory.

use std::path::PathBuf;

use mesh_api::resource::{
    Pod,
    pod::{Container, EnvVar},
};

use super::Node;

/// The environment: the search path of this machine, the host name, a directory that goes with the pod (its
/// root file system is the machine's, shared with all others), and what the manifest says.
pub fn of(pod: &Pod, container: &Container, node: &Node) -> Vec<(String, String)> {
    let path = std::env::var("PATH")
        .unwrap_or_else(|_| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut environment = vec![
        ("PATH".to_owned(), path),
        ("HOSTNAME".to_owned(), pod.metadata.name.clone()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("LAB_SCRATCH".to_owned(), node.scratch(pod).display().to_string()),
    ];
    for variable in &container.env {
        let value = value(variable, pod, node).unwrap_or_else(|| expand(&variable.value, &environment));
        environment.retain(|(name, _)| *name != variable.name);
        environment.push((variable.name.clone(), value));
    }
    environment
}

/// The program and its arguments, with `$(NAME)` replaced from the environment. Empty if the manifest gives
/// no command: there is no image here to have one.
pub fn command_line(container: &Container, environment: &[(String, String)]) -> Vec<String> {
    if container.command.is_empty() {
        return Vec::new();
    }
    container.command.iter().chain(&container.args).map(|word| expand(word, environment)).collect()
}

/// The directory to start in.
pub fn workdir(container: &Container) -> PathBuf {
    container.working_dir.clone().filter(|dir| !dir.is_empty()).map_or_else(|| "/".into(), PathBuf::from)
}

fn value(variable: &EnvVar, pod: &Pod, node: &Node) -> Option<String> {
    let path = &variable.value_from.as_ref()?.field_ref.as_ref()?.field_path;
    Some(field(path, pod, node))
}

/// The fields that Kubernetes offers to programs; any other is empty.
fn field(path: &str, pod: &Pod, node: &Node) -> String {
    let entry = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    let join = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => pod.service_account().to_owned(),
        "status.podIP" => pod.addresses().first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => join(&pod.addresses()),
        "status.hostIP" => node.number.addresses()[0].to_string(),
        "status.hostIPs" => join(&node.number.addresses()),
        _ => {
            let label = entry("metadata.labels['").and_then(|key| pod.metadata.labels.get(&key).cloned());
            let annotation = || {
                entry("metadata.annotations['").and_then(|key| pod.metadata.annotations.get(&key).cloned())
            };
            label.or_else(annotation).unwrap_or_default()
        }
    }
}

/// Replaces `$(NAME)`; `$$` stands for `$`, and an unknown name stays as it is, as in Kubernetes.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let known =
            name.and_then(|(name, after)| Some((&environment.iter().find(|(n, _)| n == name)?.1, after)));
        if let Some((value, after)) = known {
            expanded.push_str(value);
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_in_kubernetes() {
        let environment = [("PORT".to_owned(), "80".to_owned()), ("A".to_owned(), "$(PORT)".to_owned())];
        for (text, expected) in [
            ("listen $(PORT);", "listen 80;"),
            ("$(PORT)$(PORT)", "8080"),
            ("$(NONE) $PORT ${PORT}", "$(NONE) $PORT ${PORT}"),
            ("$$(PORT)", "$(PORT)"),
            ("$(A)", "$(PORT)"),
            ("end $", "end $"),
            ("$(open", "$(open"),
        ] {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }
}
