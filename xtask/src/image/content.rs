//! The few files of `/etc` that programs look into in any image.

use anyhow::Result;

use super::tree::Tree;

const PASSWD: &str = "\
root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
nonroot:x:65532:65532:nonroot:/nonexistent:/sbin/nologin
";
const GROUP: &str = "\
root:x:0:
nogroup:x:65534:
nonroot:x:65532:
";
/// The C library has both in it; without this file it asks for more, which is not there.
const NSSWITCH: &str = "\
passwd: files
group: files
hosts: files dns
";

/// Users, groups, and where names are looked up; a directory for temporary files.
pub fn accounts(tree: &mut Tree) -> Result<()> {
    tree.put("etc/passwd", PASSWD)?;
    tree.put("etc/group", GROUP)?;
    tree.put("etc/nsswitch.conf", NSSWITCH)?;
    tree.directory("tmp", 0o1777)
}
