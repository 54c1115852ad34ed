// IPsec policies of a network namespace: which packets must be protected, and how (ip-xfrm(8), net/xfrm/xfrm_user.c). The kernel tells
// each as the message that makes it. Without them a restored tree would send in the clear what was to be encrypted.
//
// The associations themselves, with their keys, are not saved: their numbers count on, and two trees from one set would use one
// number, and so one nonce, twice. A key daemon negotiates new ones.

import { RepriseError } from "../../errors.ts";
import * as xfrm from "../../sys/abi/xfrm.ts";
import { EEXIST, errnoName } from "../../sys/errno.ts";
import {
  attribute,
  attributes,
  decodeMessages,
  encodeMessage,
  NetlinkSocket,
  type NetlinkMessage,
} from "../../sys/netlink.ts";

/** Policies of the calling thread's namespace, as messages one behind the other. */
export function readPolicies(): Buffer {
  return withSocket(Buffer.alloc(0), (socket) =>
    Buffer.concat(policies(socket).map((message) => encodeMessage(settings(message)))),
  );
}

/** Whether the calling thread's namespace has security associations. */
export function hasAssociations(): boolean {
  return withSocket(
    false,
    (socket) =>
      socket.dump({ type: xfrm.XFRM_MSG_GETSA, body: Buffer.alloc(xfrm.USERSA_ID_SIZE) }).length >
      0,
  );
}

/** Whether the kernel has IPsec. */
export function hasIpsec(): boolean {
  return withSocket(false, () => true);
}

/** @throws RepriseError SYSCALL */
export function restorePolicies(content: Uint8Array): void {
  if (content.length === 0) return;
  const socket = new NetlinkSocket(xfrm.NETLINK_XFRM);
  try {
    for (const message of decodeMessages(Buffer.from(content))) {
      const answer = socket.tryRequest(message);
      if (typeof answer !== "number" || answer === -EEXIST) continue;
      const errno = errnoName(-answer);
      throw new RepriseError(
        "SYSCALL",
        `cannot restore an IPsec policy of the network namespace: netlink: ${errno}`,
        {
          errno,
          hint: "This kernel may lack what the policy asks for (CONFIG_XFRM_USER and the like).",
        },
      );
    }
  } finally {
    socket.close();
  }
}

/** Those of sockets are told, too, with directions of their own. */
function policies(socket: NetlinkSocket): NetlinkMessage[] {
  const body = Buffer.alloc(xfrm.USERPOLICY_ID_SIZE);
  return socket
    .dumpMessages({ type: xfrm.XFRM_MSG_GETPOLICY, body })
    .filter(
      (message) =>
        message.type === xfrm.XFRM_MSG_NEWPOLICY &&
        message.body.readUInt8(xfrm.POLICY_DIRECTION) < xfrm.XFRM_POLICY_MAX,
    );
}

/** Without what has been counted. */
function settings({ type, body }: NetlinkMessage): NetlinkMessage {
  const fixed = Buffer.from(body.subarray(0, xfrm.USERPOLICY_INFO_SIZE));
  fixed.fill(0, xfrm.POLICY_CURRENT, xfrm.POLICY_CURRENT + xfrm.LIFETIME_SIZE);
  const parts = [...attributes(body, xfrm.USERPOLICY_INFO_SIZE)]
    .filter(([one]) => SETTINGS.includes(one))
    .map(([one, value]) => attribute(one, value));
  return { type, body: Buffer.concat([fixed, ...parts]) };
}

const SETTINGS: readonly number[] = [
  xfrm.XFRMA_TMPL,
  xfrm.XFRMA_SEC_CTX,
  xfrm.XFRMA_POLICY_TYPE,
  xfrm.XFRMA_MARK,
  xfrm.XFRMA_IF_ID,
];

/** A kernel without IPsec has none. */
function withSocket<T>(nothing: T, look: (socket: NetlinkSocket) => T): T {
  let socket: NetlinkSocket | undefined;
  try {
    socket = new NetlinkSocket(xfrm.NETLINK_XFRM);
    return look(socket);
  } catch (error) {
    if (error instanceof RepriseError && error.code === "SYSCALL") return nothing;
    throw error;
  } finally {
    socket?.close();
  }
}
