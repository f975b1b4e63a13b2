import java.io.IOException;
import java.net.ConnectException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.channels.SocketChannel;
import java.net.Socket;

/** What a Java program sees of its sockets: see connections() in sockets.rs. */
public class Sockets {
    static String converse(Socket socket) throws IOException {
        var peer = (InetSocketAddress) socket.getRemoteSocketAddress();
        socket.setSoTimeout(5000);
        socket.getOutputStream().write("echo\nhello".getBytes());
        socket.shutdownOutput();
        var heard = new String(socket.getInputStream().readAllBytes());
        var names = shown(socket.getLocalAddress()) + " to " + shown(peer.getAddress());
        return "from " + names + " " + peer.getPort() + ": " + heard;
    }

    static String shown(InetAddress address) {
        return address.getHostAddress().replaceAll("%.*", "");
    }

    /** Arguments: name, address and port of each destination; each by a stream and by a channel. */
    public static void main(String[] arguments) throws Exception {
        for (var next = 0; next + 2 < arguments.length; next += 3) {
            var to = new InetSocketAddress(arguments[next + 1], Integer.parseInt(arguments[next + 2]));
            for (var by : new String[] {"stream", "channel"}) {
                String said;
                try (var socket = by.equals("stream") ? new Socket() : SocketChannel.open().socket()) {
                    socket.connect(to, 5000);
                    said = converse(socket);
                } catch (ConnectException refused) {
                    said = refused.getMessage().contains("refused") ? "refused" : refused.toString();
                } catch (IOException other) {
                    said = other.toString();
                }
                System.out.println(arguments[next] + " by " + by + ": " + said);
            }
        }
    }
}
