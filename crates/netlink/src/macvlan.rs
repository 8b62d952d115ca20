//! Macvlan links: further MAC addresses on a link of the node (`include/uapi/linux/if_link.h`).

use model::MacAddress;

use crate::link::{
    IFLA_ADDRESS, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO, IFLA_MTU,
    IFLA_NET_NS_FD, creation, descriptor,
};
use crate::{Error, Netlink, Netns};

pub(crate) const IFLA_MACVLAN_MODE: u16 = 1;

/// Who on one lower link may talk to whom (`enum macvlan_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Nobody to each other.
    Private,
    /// All by way of the switch outside, which must send frames back.
    Vepa,
    /// All to each other directly.
    #[default]
    Bridge,
    /// One link alone, which takes the lower link over.
    Passthru,
}

impl MacvlanMode {
    /// The mode of a name as `ip link` writes it.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "private" => Self::Private,
            "vepa" => Self::Vepa,
            "bridge" => Self::Bridge,
            "passthru" => Self::Passthru,
            _ => return None,
        })
    }

    const fn number(self) -> u32 {
        match self {
            Self::Private => 1,
            Self::Vepa => 2,
            Self::Bridge => 4,
            Self::Passthru => 8,
        }
    }

    pub(crate) fn of_number(number: u32) -> Option<Self> {
        let all = [Self::Private, Self::Vepa, Self::Bridge, Self::Passthru];
        all.into_iter().find(|mode| mode.number() == number)
    }
}

/// A macvlan link to make.
#[derive(Clone, Debug)]
pub struct MacvlanSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// The index of the link below, in the namespace of the socket.
    pub lower_index: u32,
    /// Who may talk to whom.
    pub mode: MacvlanMode,
    /// The namespace that it is born in.
    pub namespace: &'a Netns,
    /// Its link-layer address; `None` with [`MacvlanMode::Passthru`] keeps the lower link's.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes; the lower link's when `None`, which it cannot exceed.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Makes a macvlan link, down, in another namespace.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken there, `EBUSY` when the lower link has another mode's
    /// links or is a port of a bridge, `EINVAL` when the MTU exceeds the lower link's.
    pub fn create_macvlan(&mut self, spec: &MacvlanSpec<'_>) -> Result<(), Error> {
        let mut request = creation(spec.name)?;
        request.u32(IFLA_LINK, spec.lower_index).u32(IFLA_NET_NS_FD, descriptor(spec.namespace));
        if let Some(mac) = spec.mac {
            request.attribute(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = spec.mtu {
            request.u32(IFLA_MTU, mtu);
        }
        request.nested(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "macvlan").nested(IFLA_INFO_DATA, &[], |data| {
                data.u32(IFLA_MACVLAN_MODE, spec.mode.number());
            });
        });
        self.socket.call(&request, || format!("create the macvlan link {}", spec.name)).map(drop)
    }
}
