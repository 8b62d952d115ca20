//! Generic netlink: families of messages have a name, and a number that each kernel gives anew
//! (`include/uapi/linux/genetlink.h`).

use crate::Error;
use crate::message::{Request, u16_of};
use crate::socket::Socket;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Bytes of `struct genlmsghdr`.
pub(crate) const HEADER_BYTES: usize = 4;

/// The number of a family. To ask loads its module.
///
/// # Errors
/// `ENOENT` when the kernel does not have it.
pub(crate) fn family(socket: &mut Socket, name: &str) -> Result<u16, Error> {
    let action = || format!("find the generic netlink family {name} in the kernel");
    let mut request = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.text(CTRL_ATTR_FAMILY_NAME, name);
    let messages = socket.call(&request, action)?;
    let attributes = messages.iter().map(|message| message.attributes(HEADER_BYTES));
    let number = attributes.filter_map(|one| one.find(CTRL_ATTR_FAMILY_ID)).find_map(u16_of);
    number.ok_or_else(|| Error::malformed(action(), "the family has no number"))
}
