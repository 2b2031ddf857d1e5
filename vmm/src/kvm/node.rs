//! Who may open a device node, and so what helps a user who may not.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Owner, group and mode of `/dev/kvm`, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAccess(Option<Node>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    /// The owning user's name, or the number if there is no name.
    owner: String,
    /// The owning group's name or number.
    group: String,
    /// The group's number.
    gid: u32,
    /// Permissions.
    mode: u32,
}

/// Reading and writing, which KVM requires, as the bits of one of the three classes.
const READ_WRITE: u32 = 0o6;

impl NodeAccess {
    /// The access to `path`.
    pub(super) fn of(path: &Path) -> Self {
        let named = |file, id: u32| name(file, id).unwrap_or_else(|| id.to_string());
        Self(fs::metadata(path).ok().map(|node| Node {
            owner: named("/etc/passwd", node.uid()),
            group: named("/etc/group", node.gid()),
            gid: node.gid(),
            mode: node.mode() & 0o777,
        }))
    }

    /// What would help, as sentences with exact commands.
    pub(super) fn remedy(&self) -> String {
        let Some(node) = &self.0 else {
            return "Ask an administrator to check it: `ls -l /dev/kvm`.".to_owned();
        };
        let Node { group, gid, mode, .. } = node;
        if mode & READ_WRITE == READ_WRITE {
            return "Everybody may open the node itself, so something else forbids it: a control \
                    group's list of devices, a container's or a security module's rule (`dmesg | \
                    grep -i denied`)."
                .to_owned();
        }
        // Users should not join root's group: it owns far more than this node.
        if *gid != 0 && mode >> 3 & READ_WRITE == READ_WRITE {
            return format!(
                "Join the group that owns it: `sudo usermod -aG {group} $USER`, then log out and \
                 in again (`id` shows the groups that you have now)."
            );
        }
        format!(
            "No group that a user could join may open it ({}). Give yourself access until the next \
             boot, `sudo setfacl -m u:$USER:rw /dev/kvm`, or give the node for good to a group \
             that you are in, by a rule of udev: `KERNEL==\"kvm\", GROUP=\"...\", MODE=\"0660\"`.",
            if mode >> 3 & READ_WRITE == READ_WRITE {
                "the group is root's"
            } else {
                "the group may not read and write"
            }
        )
    }
}

impl fmt::Display for NodeAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |node| {
            write!(f, " ({}:{}, mode {:04o})", node.owner, node.group, node.mode)
        })
    }
}

/// The name of `id` in `file`, which is `/etc/passwd` or `/etc/group`: the name is the first field,
/// the number the third.
fn name(file: &str, id: u32) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(owner: &str, group: &str, gid: u32, mode: u32) -> NodeAccess {
        NodeAccess(Some(Node { owner: owner.to_owned(), group: group.to_owned(), gid, mode }))
    }

    #[test]
    fn a_group_that_may_open_the_node_is_the_one_to_join() {
        for group in ["kvm", "virt"] {
            let access = node("root", group, 36, 0o660);
            assert!(
                access.remedy().contains(&format!("sudo usermod -aG {group} $USER")),
                "{}",
                access.remedy()
            );
            assert_eq!(access.to_string(), format!(" (root:{group}, mode 0660)"));
        }
    }

    #[test]
    fn to_join_a_group_is_no_advice_where_it_does_not_help() {
        let nodes = [
            node("root", "root", 0, 0o600),
            node("root", "root", 0, 0o660),
            node("root", "kvm", 36, 0o600),
        ];
        for access in nodes.iter().chain([&node("root", "kvm", 36, 0o640)]) {
            let text = access.remedy();
            assert!(
                !text.contains("usermod") && text.contains("setfacl -m u:$USER:rw /dev/kvm"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_node_that_is_open_to_all_is_closed_by_something_else() {
        assert!(node("root", "root", 0, 0o666).remedy().contains("control group"));
    }

    #[test]
    fn numbers_are_told_by_their_names() {
        assert_eq!(name("/etc/passwd", 0).as_deref(), Some("root"));
        assert_eq!(name("/etc/group", 4_000_000_000), None);
        assert_eq!(
            NodeAccess::of(Path::new("/dev/null")).0.map(|node| node.owner).as_deref(),
            Some("root")
        );
        assert_eq!(NodeAccess::of(Path::new("/nowhere")), NodeAccess(None));
    }
}
