//! The image of what samples and end-to-end tests run: Debian's own programs, at Debian's paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::python;
use super::tree::Tree;
use crate::command::CommandExt;
use crate::oci::Config;
use crate::setup;

/// Programs, and the packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    (BUSYBOX, "busybox-static"),
    ("/usr/bin/curl", "curl"),
    ("/usr/sbin/nginx", "nginx-light"),
    (PYTHON, "python3"),
    ("/usr/bin/redis-cli", "redis-tools"),
    ("/usr/bin/redis-server", "redis-server"),
];
/// Shell and tools. It is static, and so resolves no names: that is curl's and Python's part.
const BUSYBOX: &str = "/usr/bin/busybox";
const PYTHON: &str = "/usr/bin/python3";

/// More users and groups than other images have: those that nginx may take.
const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/bin/sh
";
const GROUP: &str = "\
root:x:0:
www-data:x:33:
nogroup:x:65534:
nonroot:x:65532:
";

/// Fills `tree`, installing what lacks, and tells how a container starts that is not told otherwise.
pub fn fill(tree: &mut Tree) -> Result<Config> {
    setup::files(PROGRAMS)?;
    tree.put("etc/passwd", PASSWD)?;
    tree.put("etc/group", GROUP)?;
    for (program, _) in PROGRAMS {
        tree.take_program(Path::new(program))?;
    }
    applets(tree)?;
    python::library(tree, Path::new(PYTHON))?;
    // nginx opens its log here before it reads a configuration; servers that are not root keep their files
    // here.
    for directory in ["var/lib/nginx", "var/log/nginx", "var/tmp"] {
        tree.directory(directory, 0o1777)?;
    }
    Ok(Config {
        arguments: vec!["sleep".into(), "infinity".into()],
        environment: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        user: "0:0".into(),
        ..Config::default()
    })
}

/// A link for each of busybox's tools, in `/usr` as Debian has them all; a real program of that name stays.
fn applets(tree: &mut Tree) -> Result<()> {
    let real: BTreeSet<_> = PROGRAMS.iter().map(|(path, _)| PathBuf::from(path)).collect();
    for applet in Command::new(BUSYBOX).arg("--list-full").captured()?.lines() {
        let Some(path) = in_usr(applet) else { continue };
        if !real.contains(&Path::new("/").join(&path)) {
            tree.link(&path, BUSYBOX)?;
        }
    }
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin")] {
        tree.link(link, target)?;
    }
    Ok(())
}

/// Where a tool of busybox's list is: `bin/sh` is `usr/bin/sh`, since `/bin` is a link.
fn in_usr(applet: &str) -> Option<String> {
    let path = applet.strip_prefix("usr/").unwrap_or(applet);
    (path.starts_with("bin/") || path.starts_with("sbin/")).then(|| format!("usr/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_where_debian_has_them() {
        assert_eq!(in_usr("bin/sh").as_deref(), Some("usr/bin/sh"));
        assert_eq!(in_usr("usr/bin/wc").as_deref(), Some("usr/bin/wc"));
        assert_eq!(in_usr("sbin/ip").as_deref(), Some("usr/sbin/ip"));
        assert_eq!(in_usr("linuxrc"), None);
    }
}
