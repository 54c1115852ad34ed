// The RPC client as it is told of the steps of an operation (`notify_scripts`): a message each, which it must agree to before
// the operation goes on. A terminal's master goes with its message (SCM_RIGHTS).

import { CriuReqType, type CriuReq } from "../images/schema/messages.generated.ts";
import { log } from "../log.ts";
import { SCM_RIGHTS, SOL_SOCKET } from "../sys/abi/socket.ts";
import { syscallError } from "../sys/ffi.ts";
import { encodeControl, sendMessage } from "../sys/socket.ts";
import { encodeResponse, expectAck, sendResponse, type Response } from "./rpc-socket.ts";
import type { Client } from "./scripts.ts";

/** Steps whose message carries the root task's pid. */
const WITH_PID: readonly string[] = ["setup-namespaces", "post-restore"];

/** A client that is told through a socket. */
export function rpcClient(socket: number): Client {
  return {
    script(action, initPid) {
      this.beginScript(action, initPid)();
    },
    beginScript(action, initPid) {
      log.debug(`telling the RPC client of ${action}`);
      const pid = WITH_PID.includes(action) && initPid !== undefined ? { pid: initPid } : {};
      sendResponse(socket, notification(action, pid));
      return () => void expectAck(socket, action);
    },
    queryExternal() {
      const script = "query-ext-files";
      sendResponse(socket, notification(script));
      const answer: CriuReq = expectAck(socket, script);
      const external = answer.opts?.external ?? [];
      for (const key of external) log.info(`the RPC client adds the external object ${key}`);
      return external;
    },
    orphanMaster(fd) {
      const script = "orphan-pts-master";
      const data = Buffer.alloc(4);
      data.writeInt32LE(fd);
      const control = encodeControl({ level: SOL_SOCKET, type: SCM_RIGHTS, data });
      const sent = sendMessage(socket, encodeResponse(notification(script)), { control });
      if (sent < 0) throw syscallError("sendmsg", -sent, "send a terminal to the RPC client");
      expectAck(socket, script);
    },
  };
}

function notification(script: string, more: { readonly pid?: number } = {}): Response {
  return { type: CriuReqType.NOTIFY, success: true, notify: { script, ...more } };
}
