//! Users and groups by name or number, in the files of an image. Pure.

/// Largest of the two files that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most supplementary groups (the kernel's).
const MAX_GROUPS: usize = 65_536;

/// As whom a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Groups that the image gives the user besides.
    pub groups: Vec<u32>,
    /// Home directory; empty where the image does not say.
    pub home: String,
}

/// Whether an image's `User` names its user by a number, or not at all; kubelet refuses to judge
/// any other.
pub fn number(user: &str) -> Option<u32> {
    match user.split(':').next().unwrap_or_default() {
        "" => Some(0),
        name => name.parse().ok(),
    }
}

/// Finds the user of `wanted`, which is `USER`, `USER:GROUP` or empty, in `passwd` and `group`.
///
/// # Errors
/// The runtimes' words for a name that is not there.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, group_name) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let rows = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut rows = rows.filter(|row| row.len() >= 4);
    let row = rows.find(|row| row[0] == user || row[2] == user);
    let number = |text: &str| text.parse::<u32>().ok();
    let found = match &row {
        Some(row) => number(row[2]).zip(number(row[3])).map(|ids| (row[0], ids)),
        None => number(user).map(|user| ("", (user, 0))),
    };
    let (name, (id, own_group)) = found
        .ok_or_else(|| format!("unable to find user {user}: no matching entries in passwd file"))?;
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    let own_group = match group_name {
        None | Some("") => own_group,
        Some(wanted) => {
            let row = groups.iter().find(|row| row.len() >= 3 && row[0] == wanted);
            row.and_then(|row| number(row[2])).or_else(|| number(wanted)).ok_or_else(|| {
                format!("unable to find group {wanted}: no matching entries in group file")
            })?
        }
    };
    let is_member = |row: &&Vec<&str>| {
        row.len() >= 4 && !name.is_empty() && row[3].split(',').any(|member| member == name)
    };
    // Whoever asks for a group by name gets this one alone.
    let members = groups.iter().filter(is_member).filter(|_| group_name.is_none());
    Ok(Identity {
        user: id,
        group: own_group,
        groups: members.filter_map(|row| number(row[2])).take(MAX_GROUPS).collect(),
        home: row.and_then(|row| row.get(5).map(ToString::to_string)).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:w:/srv:/bin/false\nbad\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\ntape:x:26:web,other\ndisk:x:6:root\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let found = |user, group, groups: &[u32], home: &str| {
            Ok(Identity { user, group, groups: groups.to_vec(), home: home.into() })
        };
        let cases = [
            ("", found(0, 0, &[6], "/root")),
            ("web", found(101, 102, &[26], "/srv")),
            ("101", found(101, 102, &[26], "/srv")),
            ("web:tape", found(101, 26, &[], "/srv")),
            ("web:9", found(101, 9, &[], "/srv")),
            ("5000", found(5000, 0, &[], "")),
            ("5000:5001", found(5000, 5001, &[], "")),
        ];
        for (wanted, expected) in cases {
            assert_eq!(find(wanted, PASSWD, GROUP), expected, "{wanted:?}");
        }
        for wanted in ["nobody", "web:nogroup"] {
            let error = find(wanted, PASSWD, GROUP).expect_err("not there");
            assert!(error.starts_with("unable to find "), "{error}");
        }
        assert_eq!([number(""), number("7:x"), number("web")], [Some(0), Some(7), None]);
    }
}
