//! Kernel parameters, as sysctl(8) names them.

use std::fs;
use std::path::PathBuf;

/// The value of a parameter such as "net.ipv4.tcp_tw_reuse", without the blanks around it. `None` if
/// this kernel, or this network namespace, has none of that name.
pub fn read(name: &str) -> Option<String> {
    let value = fs::read_to_string(path(name)).ok()?;
    Some(value.trim().to_owned())
}

/// The same of a parameter that is one number.
pub fn number(name: &str) -> Option<u64> {
    read(name)?.parse().ok()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::{number, read};

    #[test]
    fn parameters_are_found_by_their_names() {
        let version = read("kernel.osrelease").unwrap();
        assert!(version.starts_with(|first: char| first.is_ascii_digit()));
        assert!(number("net.ipv4.tcp_fin_timeout").unwrap() > 0);
        assert_eq!(read("net.ipv4.tcp_tw_recycle_no_more"), None);
        assert_eq!(number("kernel.osrelease"), None);
    }
}
