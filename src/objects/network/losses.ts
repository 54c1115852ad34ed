// What is in a network namespace and in no image, so that it is told: queueing disciplines (tc(8)), IPsec (ip-xfrm(8)), and
// virtual servers (ipvsadm(8)).

import { readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { attributes, NetlinkSocket } from "../../sys/netlink.ts";
import type { Link } from "./links.ts";

export const NETLINK_XFRM = 6;
/** XFRM_MSG_GETSA, XFRM_MSG_GETPOLICY, and the larger of their messages. */
const IPSEC = [
  ["security associations", 0x12],
  ["policies", 0x15],
] as const;
const XFRM_MSG_SIZE = 64;

/** Of the namespace of who opens it; there are some lines above the first server. */
export const VIRTUAL_SERVERS = "/proc/thread-self/net/ip_vs";
const IPVS_HEAD = 3;

/** What the namespace of the calling thread will lose. */
export function networkLosses(socket: NetlinkSocket, links: readonly Link[]): string[] {
  return [
    ...disciplines(socket, links).map(
      ([device, kind]) => `network device ${device}: its queueing discipline ${kind} is not saved`,
    ),
    ...ipsec().map((what) => `network namespace: its IPsec ${what} are not saved`),
    ...(hasVirtualServers() ? ["network namespace: its virtual servers (IPVS) are not saved"] : []),
  ];
}

/** Those that somebody has set: the kernel's own have no handle. Offsets in struct tcmsg. */
function disciplines(socket: NetlinkSocket, links: readonly Link[]): (readonly [string, string])[] {
  const names = new Map(links.map(({ index, name }) => [index, name]));
  return socket
    .dump({ type: rt.RTM_GETQDISC, body: Buffer.alloc(rt.TCMSG_SIZE) })
    .filter((body) => body.readUInt32LE(8) !== 0)
    .map((body) => {
      const kind = attributes(body, rt.TCMSG_SIZE).get(rt.TCA_KIND)?.toString("latin1") ?? "?";
      return [names.get(body.readInt32LE(4)) ?? "?", kind.replace(/\0.*$/s, "")] as const;
    });
}

/** Whether the kernel has IPsec. */
export function hasIpsec(): boolean {
  try {
    new NetlinkSocket(NETLINK_XFRM).close();
    return true;
  } catch (error) {
    if (error instanceof RepriseError && error.code === "SYSCALL") return false;
    throw error;
  }
}

function ipsec(): string[] {
  try {
    const socket = new NetlinkSocket(NETLINK_XFRM);
    try {
      const body = Buffer.alloc(XFRM_MSG_SIZE);
      return IPSEC.filter(([, type]) => socket.dump({ type, body }).length > 0).map(
        ([what]) => what,
      );
    } finally {
      socket.close();
    }
  } catch (error) {
    // A kernel without IPsec.
    if (error instanceof RepriseError && error.code === "SYSCALL") return [];
    throw error;
  }
}

function hasVirtualServers(): boolean {
  try {
    const lines = readFileSync(VIRTUAL_SERVERS, "utf8").trim().split("\n");
    return lines.length > IPVS_HEAD;
  } catch {
    return false;
  }
}
