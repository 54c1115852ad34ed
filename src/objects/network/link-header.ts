// The head of a message about a network device: see rtnetlink(7).

import * as rt from "../../sys/abi/rtnetlink.ts";
import { AF_UNSPEC } from "../../sys/abi/socket.ts";

/** struct ifinfomsg; with no mask the flags are what they all are to be. */
export function linkHeader(index: number, flags: number, mask = 0): Buffer {
  const body = Buffer.alloc(rt.IFINFOMSG_SIZE);
  body.writeUInt8(AF_UNSPEC, 0);
  body.writeInt32LE(index, 4);
  body.writeUInt32LE(flags >>> 0, 8);
  body.writeUInt32LE((mask === 0 ? SETTABLE : mask) >>> 0, 12);
  return body;
}

/** UP, DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA, DYNAMIC: the others are the driver's. */
const SETTABLE = 0x1 | 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x2000 | 0x4000 | 0x8000;
