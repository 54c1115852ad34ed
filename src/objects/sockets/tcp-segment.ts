// TCP segments that the restore writes itself, as if they came from the peer: its FIN, its acknowledgement of ours. See
// RFC 9293 section 3.1.

import { IPPROTO_TCP } from "../../sys/abi/inet.ts";
import type { SocketAddress } from "./inet-address.ts";
import type { Payload } from "./ip-packet.ts";

export const FIN = 0x01;
export const ACK = 0x10;

export interface Segment {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  readonly seq: number;
  readonly ack: number;
  readonly flags: number;
  /** As it stands in the header: scaled. */
  readonly window: number;
}

const TCP_HEADER = 20;
const CHECKSUM = 16;

/** A segment without data. */
export function tcpSegment({ from, to, seq, ack, flags, window }: Segment): Payload {
  const body = Buffer.alloc(TCP_HEADER);
  body.writeUInt16BE(from.port, 0);
  body.writeUInt16BE(to.port, 2);
  body.writeUInt32BE(seq >>> 0, 4);
  body.writeUInt32BE(ack >>> 0, 8);
  body.writeUInt8((TCP_HEADER / 4) << 4, 12);
  body.writeUInt8(flags, 13);
  body.writeUInt16BE(window, 14);
  return { from, to, protocol: IPPROTO_TCP, body, checksumAt: CHECKSUM };
}
