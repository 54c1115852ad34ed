import { testRoom } from "./suite.ts";

testRoom("seccomp");
