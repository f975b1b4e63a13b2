//! The chart's roles are the least that the mesh needs. Runs when most others have (`LAST` in
//! `xtask/src/e2e`): it looks at what they made it do.

use anyhow::{Result, ensure};
use mesh_e2e::audit::{self, Request};
use mesh_e2e::{SOON, cluster, eventually, kubectl, mesh};
use serde_json::Value;

/// Kind and name of each role of the chart, with the account that has it.
const ROLES: [(&str, &str, &str); 4] = [
    ("clusterrole", "nodemesh-control", "mesh-control"),
    ("role", "mesh-control", "mesh-control"),
    ("clusterrole", "nodemesh-agent", "mesh-agent"),
    ("role", "mesh-agent", "mesh-agent"),
];

/// One verb on one resource; what a role's rule multiplies out to.
#[derive(Debug)]
struct Right {
    account: &'static str,
    group: String,
    resource: String,
    verb: String,
    /// Empty where it is not for one object.
    names: Vec<String>,
}

#[test]
fn every_right_of_the_mesh_is_used_and_none_is_missing() -> Result<()> {
    if !cluster::is_local() {
        println!("not run: only the local cluster's API server writes down who asks for what");
        return Ok(());
    }
    let mut rights = Vec::new();
    for (kind, name, account) in ROLES {
        let role = kubectl::get(&[kind, name, "--namespace", mesh::NAMESPACE])?;
        rights.extend(rights_of(account, &role));
    }
    ensure!(rights.len() > ROLES.len(), "the roles say nothing: {rights:?}");
    // The last test's requests may still be under way.
    eventually("every right was used; the whole suite has to run for that", SOON, || {
        let requests = audit::requests()?;
        let unused: Vec<_> =
            rights.iter().filter(|right| !requests.iter().any(|made| right.allowed(made))).collect();
        ensure!(unused.is_empty(), "nobody used {unused:#?}");
        Ok(())
    })?;
    let installed = kubectl::get(&["deployment/mesh-control", "--namespace", mesh::NAMESPACE])?;
    let since = installed["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    // An uninstallation takes rights away before those that have them: what was before this one does not
    // count. Nor does what a role grants: an API server that has just started does not know its roles for a
    // moment, and refuses all.
    let granted = |request: &Request| rights.iter().any(|right| right.covers(request));
    let refused: Vec<_> = audit::requests()?
        .into_iter()
        .filter(|request| request.code == 403 && request.time > since && !granted(request))
        .collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    Ok(())
}

fn rights_of(account: &'static str, role: &Value) -> Vec<Right> {
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    let (group, resource) = (group.clone(), resource.clone());
                    rights.push(Right {
                        account,
                        group,
                        resource,
                        verb,
                        names: words(&rule["resourceNames"]),
                    });
                }
            }
        }
    }
    rights
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

impl Right {
    /// Whether a request needed it, and was let through.
    fn allowed(&self, made: &Request) -> bool {
        self.covers(made) && made.code != 403
    }

    /// Whether it is what a request needs.
    fn covers(&self, made: &Request) -> bool {
        let same = self.account == made.account && self.group == made.group && self.resource == made.resource;
        let named = self.names.is_empty() || self.names.contains(&made.name);
        // A patch that makes its object (201) needs both.
        let verb =
            self.verb == made.verb || self.verb == "create" && made.verb == "patch" && made.code == 201;
        same && named && verb
    }
}
