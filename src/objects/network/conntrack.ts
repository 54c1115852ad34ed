// What the kernel remembers of connections that pass its firewall (conntrack(8)), and those that it expects. Images hold its
// messages, one behind the other. format.md section 14, netns-ct, netns-exp.

import { readFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { NETLINK_NETFILTER, NLM_F_CREATE } from "../../sys/abi/netlink.ts";
import { errnoName } from "../../sys/errno.ts";
import { attributes, decodeMessages, encodeMessage, NetlinkSocket } from "../../sys/netlink.ts";

export type ConntrackImage = "netns-ct" | "netns-exp";

/** NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_CTNETLINK_EXP; both ask by 1 and make by 0. */
const SUBSYSTEM = { "netns-ct": 1, "netns-exp": 2 } as const;
const MSG_GET = 1;
const NFGENMSG_SIZE = 4;

/** The table in the namespace of the calling thread; empty where the kernel has none. @throws RepriseError SYSCALL */
export function readConntrack(kind: ConntrackImage): Buffer {
  if (!tracksConnections()) return Buffer.alloc(0);
  const socket = new NetlinkSocket(NETLINK_NETFILTER);
  try {
    const type = (SUBSYSTEM[kind] << 8) | MSG_GET;
    const messages = socket.dumpMessages({ type, body: Buffer.alloc(NFGENMSG_SIZE) });
    return Buffer.concat(messages.map((message) => encodeMessage(message)));
  } catch (error) {
    // EINVAL and EOPNOTSUPP: the kernel tracks no connections.
    if (error instanceof RepriseError && error.code === "SYSCALL") return Buffer.alloc(0);
    throw error;
  } finally {
    socket.close();
  }
}

/** Of the namespace of who opens it. */
export const CONNTRACK_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count";

/** The kernel looks through the tables of all namespaces together, which takes long. */
function tracksConnections(): boolean {
  try {
    return readFileSync(CONNTRACK_COUNT, "utf8").trim() !== "0";
  } catch {
    return false;
  }
}

/** Puts a table back into the namespace of the calling thread. @throws RepriseError SYSCALL */
export function restoreConntrack(kind: ConntrackImage, content: Buffer): void {
  const messages = decodeMessages(content);
  if (messages.length === 0) return;
  const socket = new NetlinkSocket(NETLINK_NETFILTER);
  try {
    for (const message of messages) {
      const body = kind === "netns-ct" ? liberal(message.body) : message.body;
      // CRIU's second image may hold tracked connections, too: each message says what it is.
      const answer = socket.tryRequest({ type: message.type, flags: NLM_F_CREATE, body });
      if (typeof answer === "number") {
        log.warn(`a tracked connection is not put back: netlink: ${errnoName(-answer)}`);
      }
    }
  } finally {
    socket.close();
  }
}

const CTA_PROTOINFO = 4;
const CTA_PROTOINFO_TCP = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY = 5;
/** IP_CT_TCP_FLAG_BE_LIBERAL: the windows are not known any more. */
const BE_LIBERAL = 0x8;

/** Packets of a TCP connection are let through wherever they lie in the stream. */
function liberal(body: Buffer): Buffer {
  const copy = Buffer.from(body);
  const tcp = attributes(attributes(copy, NFGENMSG_SIZE).get(CTA_PROTOINFO) ?? Buffer.alloc(0), 0);
  const flags = attributes(tcp.get(CTA_PROTOINFO_TCP) ?? Buffer.alloc(0), 0);
  for (const direction of [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY]) {
    const pair = flags.get(direction);
    // struct nf_ct_tcp_flags: flags and mask.
    for (const at of [0, 1]) if (pair !== undefined) pair[at] = (pair[at] ?? 0) | BE_LIBERAL;
  }
  return copy;
}
