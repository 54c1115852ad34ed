// Devices that the caller has made for a tree (--external netdev[…]) and that are moved into its namespace. When the restore fails
// they go back as they were: the kernel would delete virtual ones together with the namespace.

import { closeSync, openSync } from "node:fs";
import { log } from "../../log.ts";
import { F_DUPFD_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { NETLINK_ROUTE } from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall } from "../../sys/ffi.ts";
import { attribute, NetlinkSocket, u32 } from "../../sys/netlink.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { linkHeader } from "./link-header.ts";
import type { Link } from "./links.ts";

interface MovedDevice {
  /** Our own descriptor of the namespace that it is in now: it keeps the namespace alive. */
  readonly namespace: number;
  /** As it was outside. */
  readonly before: Link;
  /** Its number inside. */
  readonly index: number;
}

export class GivenDevices {
  readonly #moved: MovedDevice[] = [];

  /** Takes note of a device that was moved. */
  note(moved: MovedDevice): void {
    const namespace = syscall("fcntl", moved.namespace, F_DUPFD_CLOEXEC, 0);
    this.#moved.push({ ...moved, namespace });
  }

  /** The tree keeps them. */
  release(): void {
    for (const { namespace } of this.#moved.splice(0)) closeSync(namespace);
  }

  /** Moves them back; what cannot be is told in the log. */
  giveBack(): void {
    const home = openSync("/proc/thread-self/ns/net", "r");
    try {
      for (const moved of this.#moved.toReversed()) moveBack(moved, home);
    } finally {
      closeSync(home);
      this.release();
    }
  }
}

/** What was set by the tree's images is put back; addresses that the device had outside are gone with the first move. */
function moveBack({ namespace, before, index }: MovedDevice, home: number): void {
  const address = before.attributes.get(rt.IFLA_ADDRESS);
  const mtu = before.attributes.get(rt.IFLA_MTU);
  const socket = inNetNamespace(namespace, () => new NetlinkSocket(NETLINK_ROUTE));
  try {
    const answer = socket.tryRequest({
      type: rt.RTM_SETLINK,
      body: Buffer.concat([
        linkHeader(index, before.flags),
        attribute(rt.IFLA_IFNAME, before.name),
        attribute(rt.IFLA_NEW_IFINDEX, u32(before.index)),
        attribute(rt.IFLA_NET_NS_FD, u32(home)),
        ...(address === undefined ? [] : [attribute(rt.IFLA_ADDRESS, address)]),
        ...(mtu === undefined ? [] : [attribute(rt.IFLA_MTU, mtu)]),
      ]),
    });
    if (typeof answer === "number")
      log.warn(`cannot move the device ${before.name} back: netlink: ${errnoName(-answer)}`);
  } finally {
    socket.close();
  }
}
