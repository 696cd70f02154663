//! Kernel parameters, as sysctl(8) names them.

use std::fs;
use std::path::PathBuf;

/// The value of a parameter such as "net.ipv4.tcp_tw_reuse", without the blanks around it. `None` if
/// this kernel, or this network namespace, has none of that name.
pub fn read(name: &str) -> Option<String> {
    let value = fs::read_to_string(path(name)).ok()?;
    Some(value.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn parameters_are_found_by_their_names() {
        let version = read("kernel.osrelease").unwrap();
        assert!(version.starts_with(|first: char| first.is_ascii_digit()));
        let seconds = read("net.ipv4.tcp_fin_timeout").unwrap();
        assert!(seconds.parse::<u32>().unwrap() > 0);
        assert_eq!(read("net.ipv4.tcp_tw_recycle_no_more"), None);
    }
}
