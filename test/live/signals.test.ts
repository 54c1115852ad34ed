import { testRoom } from "./suite.ts";

testRoom("signals");
