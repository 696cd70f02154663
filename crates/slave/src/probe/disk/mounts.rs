//! Which file systems there are: /proc/self/mountinfo, filtered.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::config::probe::Disk;

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where.
    pub(super) point: PathBuf,
    /// Major and minor number of its device: two mounts of one file system have the same.
    device: String,
    /// The folder of the file system that is mounted: `/`, unless it is a bind mount.
    root: Vec<u8>,
    kind: String,
}

/// Reads the text of /proc/self/mountinfo (proc(5)) and leaves out what the filter leaves out, what
/// is hidden under a later mount, and all but the best place of a file system that is mounted at
/// several. In the order of the mount points.
///
/// Own parsing, because procfs-core leaves the kernel's escapes in the mount point and gives up on
/// all lines when one is not UTF-8.
pub(super) fn select(config: &Disk, text: &[u8]) -> Vec<Mount> {
    let mut by_point = HashMap::new();
    for mount in text.split(|byte| *byte == b'\n').filter_map(parse) {
        // The last one mounted at a place is the one that is seen there.
        by_point.insert(mount.point.clone(), mount);
    }
    let mut by_device: HashMap<String, Mount> = HashMap::new();
    for mount in by_point.into_values() {
        let point = mount.point.to_string_lossy();
        if config.types_exclude.matches(&mount.kind) || config.mounts_exclude.matches(&point) {
            continue;
        }
        match by_device.get(&mount.device) {
            Some(better) if rank(better) <= rank(&mount) => {}
            _ => {
                by_device.insert(mount.device.clone(), mount);
            }
        }
    }
    let mut mounts: Vec<Mount> = by_device.into_values().collect();
    mounts.sort_by(|a, b| a.point.cmp(&b.point));
    mounts
}

/// The lower, the more this is the place by which people know the file system.
fn rank(mount: &Mount) -> (bool, usize, &PathBuf) {
    (
        mount.root != b"/",
        mount.point.as_os_str().len(),
        &mount.point,
    )
}

/// One line: `36 35 98:0 /root /point options shared:1 - type source super-options`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let root = unescape(fields.next()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    fields.find(|field| field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        point,
        device,
        root,
        kind,
    })
}

/// Undoes the kernel's escapes: space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = |digits: &[u8]| -> Option<u8> {
            u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()
        };
        let escaped = (*byte == b'\\').then(|| after.get(..3).and_then(octal));
        match escaped.flatten() {
            Some(plain) => {
                out.push(plain);
                rest = &after[3..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::finding::Thresholds;
    use crate::config::probe::Patterns;

    fn config(types: &[&str], mounts: &[&str]) -> Disk {
        let patterns =
            |list: &[&str]| Patterns::new(list.iter().map(|p| (*p).to_owned()).collect());
        Disk {
            space: Thresholds::default(),
            inodes: Thresholds::default(),
            timeout: Duration::from_secs(5),
            types_exclude: patterns(types),
            mounts_exclude: patterns(mounts),
        }
    }

    fn points(config: &Disk, text: &[u8]) -> Vec<String> {
        let mounts = select(config, text);
        mounts
            .iter()
            .map(|mount| mount.point.display().to_string())
            .collect()
    }

    /// From a Debian 12 host, shortened.
    const HOST: &[u8] =
        br"22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 28 0:25 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,size=401716k
40 28 254:2 / /srv rw,relatime shared:30 - xfs /dev/vda2 rw
41 28 254:2 /data /srv-of-somebody rw,relatime shared:30 - xfs /dev/vda2 rw
42 28 254:2 /x /s rw,relatime shared:30 - xfs /dev/vda2 rw
50 28 0:44 / /mnt/nfs rw,relatime shared:90 master:3 - nfs4 server:/export rw,vers=4.2
51 28 0:45 / /home/a/.sshfs rw,nosuid - fuse.sshfs b@c: rw
60 28 254:16 / /media/USB\040Stick\0111 rw - vfat /dev/sdb1 rw
61 31 0:46 / /run/user/1000 rw,nosuid,nodev,relatime shared:300 - tmpfs tmpfs rw
";

    #[test]
    fn pseudo_network_and_double_mounts_are_left_out() {
        let config = config(&["sysfs", "proc", "nfs*", "fuse.*"], &["/run/*"]);
        assert_eq!(
            points(&config, HOST),
            ["/", "/media/USB Stick\t1", "/run", "/srv"]
        );
    }

    #[test]
    fn the_last_mount_at_a_place_hides_the_others() {
        let text = b"1 0 8:1 / /mnt rw - ext4 /dev/a rw\n2 1 8:2 / /mnt rw - squashfs /dev/b ro\n";
        let mounts = select(&config(&[], &[]), text);
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].kind, "squashfs");
        assert_eq!(select(&config(&["squashfs"], &[]), text), []);
    }

    #[test]
    fn a_bind_mount_stands_in_where_nothing_else_is_seen() {
        let text =
            b"1 0 0:50 / / rw - overlay overlay rw\n2 1 8:1 /volumes/x /data rw - ext4 /dev/a rw\n";
        assert_eq!(points(&config(&[], &[]), text), ["/", "/data"]);
    }

    #[test]
    fn odd_lines_are_no_reason_to_stop() {
        let text =
            b"\nshort\n1 0 8:1 / /\xff\xfe\\04 rw - ext4 /dev/a rw\n1 0 8:2 / /nodash rw ext4\n";
        let mounts = select(&config(&[], &[]), text);
        assert_eq!(mounts.len(), 1);
        assert_eq!(
            mounts[0].point.as_os_str().as_encoded_bytes(),
            b"/\xff\xfe\\04"
        );
    }
}
