// A client of CRIU's RPC, as runtimes are: it makes the socket, starts `criu swrk N` with one end at N, asks, and answers
// notifications on the way. Reads block, as the worker is another process.

import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, writeSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { decode, encode } from "../../src/images/codec.ts";
import {
  CriuReqType,
  type CriuNotify,
  type CriuResp,
} from "../../src/images/schema/messages.generated.ts";
import { AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET } from "../../src/sys/abi/socket.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { receiveMessage, socketPair } from "../../src/sys/socket.ts";

export const CRIU = fileURLToPath(new URL("../../bin/criu", import.meta.url));

export type Request = Parameters<typeof encode<"criu_req">>[1];

/** A notification, with the descriptors that came along. */
export interface Notification extends CriuNotify {
  readonly fds: readonly number[];
}

/** What the client answers to a notification; nothing is consent. */
export type Answer = { readonly agrees?: boolean; readonly external?: readonly string[] } | void;

export interface Worker {
  readonly pid: number;
  /** Our end of the socket. */
  readonly socket: number;
  /** Exit code, or the signal's name. */
  readonly ended: Promise<number | string | null>;
}

export interface StartOptions {
  /** Number of the worker's end of the socket. @default 3 */
  readonly number?: number;
  /** Standard input, output and errors. @default none */
  readonly stdio?: readonly (number | "ignore")[];
  readonly env?: Readonly<Record<string, string>>;
}

/** Starts a worker. */
export function startWorker(options: StartOptions = {}): Worker {
  const { number = 3, stdio = ["ignore", "ignore", "ignore"] } = options;
  const [ours, theirs] = socketPair(AF_UNIX, SOCK_SEQPACKET);
  const gap = Array.from({ length: number - stdio.length }, () => "ignore" as const);
  const child: ChildProcess = spawn(CRIU, ["swrk", String(number)], {
    stdio: [...stdio, ...gap, theirs],
    env: { PATH: process.env["PATH"], ...options.env },
  });
  closeSync(theirs);
  const ended = new Promise<number | string | null>((resolve, reject) => {
    child.once("exit", (code, signal) => resolve(code ?? signal));
    child.once("error", reject);
  });
  return { pid: child.pid ?? -1, socket: ours, ended };
}

/** Sends one request and answers notifications until its response comes; undefined when the worker closed the connection. */
export function ask(
  { socket }: Pick<Worker, "socket">,
  request: Request,
  answer: (notification: Notification) => Answer = () => undefined,
): CriuResp | undefined {
  writeSync(socket, encode("criu_req", request));
  for (;;) {
    const response = receive(socket);
    if (response === undefined) return undefined;
    if (response.message.type !== CriuReqType.NOTIFY) return response.message;
    const { notify } = response.message;
    const { agrees = true, external } = answer({ ...notify, fds: response.fds }) ?? {};
    for (const fd of response.fds) closeSync(fd);
    const opts = external === undefined ? {} : { opts: { images_dir_fd: -1, external } };
    writeSync(
      socket,
      encode("criu_req", { type: CriuReqType.NOTIFY, notify_success: agrees, ...opts }),
    );
  }
}

/** One request to a worker of its own. */
export async function askOnce(
  request: Request,
  options: StartOptions & { readonly answer?: (notification: Notification) => Answer } = {},
): Promise<{ response: CriuResp | undefined; status: number | string | null; worker: number }> {
  const worker = startWorker(options);
  try {
    const response = ask(worker, request, options.answer);
    return { response, status: await worker.ended, worker: worker.pid };
  } finally {
    closeSync(worker.socket);
  }
}

function receive(socket: number): { message: CriuResp; fds: number[] } | undefined {
  const received = receiveMessage(socket, Buffer.alloc(8192), 0);
  if (typeof received === "number" || received.length === 0) return undefined;
  const fds = received.control
    .filter(({ type }) => type === SCM_RIGHTS)
    .flatMap(({ data }) =>
      Array.from({ length: data.length / 4 }, (_, i) => data.readInt32LE(i * 4)),
    );
  return { message: decode("criu_resp", received.data), fds };
}

/** Connects to `criu service`. */
export function connectSeqpacket(path: string): number {
  const socket = syscall("socket", AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const name = Buffer.concat([Buffer.of(AF_UNIX, 0), Buffer.from(path), Buffer.of(0)]);
  syscall("connect", socket, name, name.length);
  return socket;
}
