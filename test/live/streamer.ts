// What criu-image-streamer does, as far as --stream needs it: takes the files of a dump into a directory ("capture"), or gives those
// of a directory ("serve"). `node streamer.ts capture|serve IMAGES-DIR STORE`; it says "ready", and ends with the connection.

import { spawn } from "node:child_process";
import { closeSync, existsSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { decode, encodeEntry } from "../../src/images/codec.ts";
import { SCM_RIGHTS } from "../../src/sys/abi/socket.ts";
import { receiveMessage } from "../../src/sys/socket.ts";
import { accept, listenUnix, receiveAll, sendAll } from "../../src/sys/stream.ts";

const [mode = "", imagesDir = "", store = ""] = process.argv.slice(2);
const path = join(imagesDir, `streamer-${mode}.sock`);
const listener = listenUnix(path);
process.stdout.write("ready\n");
const connection = accept(listener);
rmSync(path);
const copies: Promise<number | null>[] = [];
for (let name = nextRequest(); name !== undefined; name = nextRequest()) {
  const file = join(store, name);
  if (mode === "serve") {
    const exists = existsSync(file);
    sendAll(connection, Buffer.from(encodeEntry("img_streamer_reply_entry", { exists })));
    if (!exists) continue;
  }
  const pipe = receivePipe();
  const own = openSync(file, mode === "serve" ? "r" : "wx");
  // The other side has many pipes at once, and does not wait for one to end.
  const ends = mode === "serve" ? [own, pipe] : [pipe, own];
  const copy = spawn("cat", { stdio: [...ends, "inherit"] });
  copies.push(new Promise((resolve) => copy.once("exit", resolve)));
  closeSync(own);
  closeSync(pipe);
}
// Who asks for an image need not read all of it.
const failed = (await Promise.all(copies)).some((status) => status !== 0);
process.exitCode = failed && mode === "capture" ? 1 : 0;

function nextRequest(): string | undefined {
  const length = Buffer.alloc(4);
  if (!receiveAll(connection, length)) return undefined;
  const message = Buffer.alloc(length.readUInt32LE(0));
  receiveAll(connection, message);
  return decode("img_streamer_request_entry", message).filename;
}

function receivePipe(): number {
  const message = receiveMessage(connection, Buffer.alloc(1), 0);
  if (typeof message === "number") throw new Error(`recvmsg: ${message}`);
  const rights = message.control.find(({ type }) => type === SCM_RIGHTS)?.data;
  if (rights === undefined) throw new Error("no pipe came");
  return rights.readInt32LE(0);
}
