//! Redirects every frame that one interface receives to another: tc-mirred(8) on ingress, sch_ingress.

use futures::TryStreamExt;
use netlink_packet_route::tc::TcActionAttribute;
use netlink_packet_route::tc::TcActionMirrorOption;
use netlink_packet_route::tc::TcActionOption;
use netlink_packet_route::tc::TcAttribute;
use netlink_packet_route::tc::TcFilterU32Option;
use netlink_packet_route::tc::TcHandle;
use netlink_packet_route::tc::TcMessage;
use netlink_packet_route::tc::TcOption;
use rtnetlink::LinkUnspec;

use super::NetworkError;
use super::network::netlink;

const ETH_P_ALL: u16 = 0x0003;

/// Sets the tap up and redirects frames between it and the interface.
pub(super) async fn redirect(
    handle: &rtnetlink::Handle,
    (index, name): (u32, &str),
    tap: &str,
    mtu: u16,
) -> Result<(), NetworkError> {
    // The namespace's own IPv6 must not send on the tap, which leads to the guest.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1");
    let found = handle.link().get().match_name(tap.to_owned()).execute().try_next().await;
    let tap_index = found
        .map_err(netlink("find tap", tap))?
        .map(|link| link.header.index)
        .ok_or_else(|| NetworkError::Interface { name: tap.into(), reason: "vanished" })?;
    let up = LinkUnspec::new_with_index(tap_index).mtu(mtu.into()).up().build();
    handle.link().set(up).execute().await.map_err(netlink("set up tap", tap))?;
    for (from, from_name, to) in [(index, name, tap_index), (tap_index, tap, index)] {
        let from = i32::try_from(from).expect("the kernel's interface indices are positive ints");
        open_ingress(handle, from, from_name).await?;
        handle
            .traffic_filter(from)
            .add()
            .ingress()
            .protocol(ETH_P_ALL.to_be())
            .redirect(to)
            .map_err(netlink("redirect", from_name))?
            .execute()
            .await
            .map_err(netlink("redirect", from_name))?;
    }
    Ok(())
}

/// Adds an ingress qdisc, which has the filters for incoming frames. An existing one is left of an earlier redirect
/// whose tap is gone, and is replaced, or belongs to another program, and is an error.
async fn open_ingress(handle: &rtnetlink::Handle, index: i32, name: &str) -> Result<(), NetworkError> {
    let add = || handle.qdisc().add(index).ingress().execute();
    match add().await {
        Err(error) if is(&error, libc::EEXIST) && leads_nowhere(handle, index, name).await? => {
            let mut left = handle.qdisc().del(index);
            left.message_mut().header.parent = TcHandle::INGRESS;
            left.execute().await.map_err(netlink("remove an old redirect of", name))?;
            add().await.map_err(netlink("add ingress qdisc to", name))
        }
        added => added.map_err(netlink("add ingress qdisc to", name)),
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// Whether the only filters are redirects to interfaces that no longer exist.
async fn leads_nowhere(handle: &rtnetlink::Handle, index: i32, name: &str) -> Result<bool, NetworkError> {
    let filters = handle.traffic_filter(index).get().ingress().execute();
    let filters: Vec<TcMessage> = filters.try_collect().await.map_err(netlink("list filters of", name))?;
    // Our filters are of this kind; the effect of another kind is not known.
    let is_u32 = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "u32");
    let are_u32 = filters.iter().all(|filter| filter.attributes.iter().any(is_u32));
    let mut targets = filters.iter().flat_map(targets).peekable();
    Ok(are_u32 && targets.peek().is_some() && targets.all(|target| target == Some(0)))
}

/// The target interface of each action of a filter; none for an action that is not a redirect.
fn targets(filter: &TcMessage) -> Vec<Option<u32>> {
    let options = filter.attributes.iter().flat_map(|attribute| match attribute {
        TcAttribute::Options(options) => &options[..],
        _ => &[],
    });
    let actions = options.flat_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => &actions[..],
        _ => &[],
    });
    let target = |attribute: &TcActionAttribute| match attribute {
        TcActionAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        }),
        _ => None,
    };
    actions.map(|action| action.attributes.iter().find_map(target)).collect()
}
