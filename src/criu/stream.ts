// --stream: images that do not lie in a directory but go to criu-image-streamer, or come from it. It listens at a unix socket in the
// images directory. For each file its name is asked for, and a pipe is handed over through which the content goes (CRIU's
// img-streamer.proto). The set is made, or unpacked, in a directory of its own beside the socket for the time; it is away when the
// action ends.

import {
  closeSync,
  constants,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
} from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../errors.ts";
import { decode, encodeEntry } from "../images/codec.ts";
import { log } from "../log.ts";
import { O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { SCM_RIGHTS, SOL_SOCKET } from "../sys/abi/socket.ts";
import { EINTR, errnoName } from "../sys/errno.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { encodeControl, sendMessage } from "../sys/socket.ts";
import { connectUnix, receiveAll, sendAll } from "../sys/stream.ts";
import type { CriuOptions } from "./options.ts";
import type { Directories } from "./paths.ts";
import { takeImages } from "./stream-names.ts";
import type { ScriptRunner } from "./scripts.ts";

const CAPTURE_SOCKET = "streamer-capture.sock";
const SERVE_SOCKET = "streamer-serve.sock";

/** Where a dump makes its images, and how they get to the streamer. */
export interface StreamedDump extends Disposable {
  readonly imagesDir: string;
  /** Sends the images when they are complete, before the tasks end: a failure lets these go on. */
  readonly hooks: ScriptRunner;
}

/**
 * Connects to the streamer for a dump.
 * @throws RepriseError SYSCALL when none listens, BAD_ARGUMENT for options that do not go with it
 */
export function streamDump(
  options: CriuOptions,
  { imagesDir }: Directories,
  runner: ScriptRunner,
): StreamedDump {
  refuseChains(options);
  runner.script?.("pre-stream");
  const connection = connect(imagesDir, CAPTURE_SOCKET);
  const own = mkdtempSync(join(imagesDir, "stream-"));
  return {
    imagesDir: own,
    hooks: {
      ...runner,
      script(action, initPid) {
        if (action === "post-dump") sendImages(connection, own);
        runner.script?.(action, initPid);
      },
    },
    [Symbol.dispose]: () => {
      trySyscall("close", connection);
      rmSync(own, { recursive: true, force: true });
    },
  };
}

/** Images that came from the streamer. */
export interface StreamedImages extends Disposable {
  readonly imagesDir: string;
}

/**
 * Takes all images from the streamer for a restore.
 * @throws RepriseError SYSCALL, IMAGE_MISSING, BAD_ARGUMENT as `streamDump`
 */
export function streamRestore(
  options: CriuOptions,
  { imagesDir }: Directories,
  { script }: Pick<ScriptRunner, "script">,
): StreamedImages {
  refuseChains(options);
  script?.("pre-stream");
  const connection = connect(imagesDir, SERVE_SOCKET);
  const own = mkdtempSync(join(imagesDir, "stream-"));
  try {
    const take = (name: string): boolean => receiveImage(connection, own, name);
    const count = takeImages(own, take);
    log.info(`took ${count} images from the streamer`);
  } catch (error) {
    rmSync(own, { recursive: true, force: true });
    throw error;
  } finally {
    trySyscall("close", connection);
  }
  return {
    imagesDir: own,
    [Symbol.dispose]: () => rmSync(own, { recursive: true, force: true }),
  };
}

/** @throws RepriseError BAD_ARGUMENT for an action that has no images of its own to stream. */
export function refuseStream(options: CriuOptions, action: string): void {
  if (!options.flags.has("stream") || action === "dump" || action === "restore") return;
  throw new RepriseError(
    "BAD_ARGUMENT",
    `--stream cannot be used with the ${action} command`,
    action === "pre-dump" ? { hint: "There are no chains of streamed images." } : {},
  );
}

/** What needs a directory that others can read, now or later. */
function refuseChains({ flags, values }: CriuOptions): void {
  const given = [
    values["prev-images-dir"] === undefined ? undefined : "prev-images-dir",
    ...(["auto-dedup", "track-mem", "lazy-pages"] as const).filter((name) => flags.has(name)),
  ].find((name) => name !== undefined);
  if (given === undefined) return;
  throw new RepriseError("BAD_ARGUMENT", `--stream cannot be used with --${given}`, {
    hint: "A streamed set stands alone, and is taken as a whole.",
  });
}

function connect(imagesDir: string, socket: string): number {
  const path = join(imagesDir, socket);
  try {
    return connectUnix(path);
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
    throw new RepriseError(error.code, error.message, {
      ...(error.errno === undefined ? {} : { errno: error.errno }),
      hint: `Start criu-image-streamer --images-dir ${imagesDir} ${socket === CAPTURE_SOCKET ? "capture" : "serve"} first.`,
      cause: error,
    });
  }
}

function sendImages(connection: number, dir: string): void {
  const names = readdirSync(dir);
  for (const name of names) {
    const file = openSync(join(dir, name), constants.O_RDONLY);
    try {
      const pipe = requestPipe(connection, name, "send");
      try {
        copyOut(file, pipe, name);
      } finally {
        closeSync(pipe);
      }
    } finally {
      closeSync(file);
    }
  }
  log.info(`gave ${names.length} images to the streamer`);
}

function receiveImage(connection: number, dir: string, name: string): boolean {
  request(connection, name);
  if (!receiveReply(connection)) return false;
  const pipe = handPipe(connection, "receive");
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
  const file = openSync(join(dir, name), flags, 0o600);
  try {
    while (move("splice", [pipe, 0, file, 0, CHUNK, 0], name) > 0);
  } finally {
    closeSync(file);
    closeSync(pipe);
  }
  return true;
}

/** Bytes in one call. */
const CHUNK = 1 << 20;

function copyOut(file: number, pipe: number, name: string): void {
  for (let left = fstatSync(file).size; left > 0;) {
    const moved = move("sendfile", [pipe, file, 0, Math.min(left, CHUNK)], name);
    if (moved === 0) break;
    left -= moved;
  }
}

function move(call: "sendfile" | "splice", args: readonly number[], name: string): number {
  for (;;) {
    const moved = trySyscall(call, ...args);
    if (moved >= 0) return moved;
    if (moved === -EINTR) continue;
    throw new RepriseError(
      "SYSCALL",
      `cannot stream image ${name}: ${call}: ${errnoName(-moved)}`,
      {
        syscall: call,
        errno: errnoName(-moved),
        hint: "Has the streamer ended? It says why.",
      },
    );
  }
}

function requestPipe(connection: number, name: string, direction: "send" | "receive"): number {
  request(connection, name);
  return handPipe(connection, direction);
}

function request(connection: number, filename: string): void {
  sendAll(connection, Buffer.from(encodeEntry("img_streamer_request_entry", { filename })));
}

function receiveReply(connection: number): boolean {
  const length = Buffer.alloc(4);
  const isThere = receiveAll(connection, length);
  const size = length.readUInt32LE(0);
  const message = Buffer.alloc(Math.min(size, MAX_REPLY));
  if (!isThere || size > MAX_REPLY || (size > 0 && !receiveAll(connection, message)))
    throw new RepriseError("SYSCALL", "the image streamer closed the connection");
  return decode("img_streamer_reply_entry", message).exists;
}

const MAX_REPLY = 64;

/** Makes a pipe and gives the streamer its end of it; the answer is ours. */
function handPipe(connection: number, direction: "send" | "receive"): number {
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, O_CLOEXEC);
  const [reader, writer] = [ends.readInt32LE(0), ends.readInt32LE(4)];
  const [own, theirs] = direction === "send" ? [writer, reader] : [reader, writer];
  const data = Buffer.alloc(4);
  data.writeInt32LE(theirs);
  const control = encodeControl({ level: SOL_SOCKET, type: SCM_RIGHTS, data });
  const sent = sendMessage(connection, Buffer.alloc(1), { control });
  closeSync(theirs);
  if (sent === 1) return own;
  closeSync(own);
  throw new RepriseError(
    "SYSCALL",
    `cannot give a pipe to the image streamer: sendmsg: ${errnoName(-sent)}`,
  );
}
