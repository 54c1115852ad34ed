// Executions of an instruction of our own are counted, one by one, and only from the beginning on.
import { expect, test } from "vitest";
import { callNative } from "../sys/ffi.ts";
import { RETURN } from "./arch/x86_64/code.ts";
import { ExecutionCounter } from "./executions.ts";
import { loadCode } from "./local.ts";

test("executions are counted from the beginning on", ({ skip }) => {
  const code = loadCode(RETURN);
  callNative(code, 0, 0, 0);
  const counter = ExecutionCounter.of(process.pid, code);
  if (counter === undefined) skip("this machine has no breakpoints that count");
  else {
    expect(counter.count()).toBe(0);
    for (let call = 1; call <= 5; call++) {
      callNative(code, 0, 0, 0);
      expect(counter.count()).toBe(call);
    }
    counter.close();
  }
});
