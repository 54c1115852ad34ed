// The transport of CRIU's RPC: one SOCK_SEQPACKET datagram is one protobuf message, with no length before it. Plain read(2)
// and write(2) do for that, so a request that needs nothing else (VERSION) is answered without the FFI being loaded.

import { readSync, writeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { MSG_PEEK } from "../sys/abi/socket.ts";
import { syscall } from "../sys/ffi.ts";
import { decode, encode } from "../images/codec.ts";
import { CriuReqType, type CriuReq, type CriuResp } from "../images/schema/messages.generated.ts";

export type Response = Parameters<typeof encode<"criu_resp">>[1];

/**
 * Larger than any datagram that a client can send: the kernel limits it by the sender's buffer (net.core.wmem_max). The
 * memory is touched only as far as a message reaches.
 */
const LARGEST_REQUEST = 16 * 1024 * 1024;
/** runc reads 40 960 bytes, go-criu 8 192: an error text must leave room in either. */
const LONGEST_ERROR = 1024;

/** The next request, or undefined when the client has closed the connection. */
export function receiveRequest(socket: number): CriuReq | undefined {
  const buffer = datagramBuffer();
  const length = retried(() => readSync(socket, buffer, 0, buffer.length, null));
  if (length === 0) return undefined;
  if (length === buffer.length) {
    throw new RepriseError("BAD_ARGUMENT", `cannot read a request: it has ${length} bytes or more`);
  }
  return decode("criu_req", Buffer.from(buffer.subarray(0, length)));
}

/** The next request, which stays to be received. */
export function peekRequest(socket: number): CriuReq | undefined {
  const buffer = datagramBuffer();
  const length = syscall("recvfrom", socket, buffer, buffer.length, MSG_PEEK, 0, 0);
  return length === 0 ? undefined : decode("criu_req", Buffer.from(buffer.subarray(0, length)));
}

/** One for all: V8 would collect garbage after a few of them, and a tree stands still while its client is asked. */
function datagramBuffer(): Buffer {
  return (datagram ??= Buffer.allocUnsafeSlow(LARGEST_REQUEST));
}

let datagram: Buffer | undefined;

/** Sends a response in one datagram. */
export function sendResponse(socket: number, response: Response): void {
  const bytes = encodeResponse(response);
  retried(() => writeSync(socket, bytes));
}

/** The bytes of a response, whose error text is cut to what every client can read. */
export function encodeResponse(response: Response): Buffer {
  const { cr_errmsg } = response;
  return Buffer.from(
    encode(
      "criu_resp",
      cr_errmsg === undefined
        ? response
        : { ...response, cr_errmsg: cr_errmsg.slice(0, LONGEST_ERROR) },
    ),
  );
}

/** A question to the client in the middle of an operation. @throws RepriseError when it does not agree */
export function expectAck(socket: number, script: string): CriuReq {
  const answer = receiveRequest(socket);
  if (answer?.type === CriuReqType.NOTIFY && answer.notify_success === true) return answer;
  const why = answer === undefined ? "it closed the connection" : "it reported an error";
  throw new RepriseError("BAD_ARGUMENT", `the RPC client refused ${script}: ${why}`, {
    hint: "The reason stands in the client's own log (a hook of the container may have failed).",
  });
}

export type { CriuReq, CriuResp };

/** A socket that its owner made non-blocking gives EAGAIN: then it is tried again. */
function retried(call: () => number): number {
  for (;;) {
    try {
      return call();
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code === "EINTR") continue;
      if (code !== "EAGAIN") throw error;
      Atomics.wait(PAUSE, 0, 0, PAUSE_MS);
    }
  }
}

const PAUSE = new Int32Array(new SharedArrayBuffer(4));
const PAUSE_MS = 2;
