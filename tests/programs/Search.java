import java.io.FileInputStream;
import java.io.InputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Hashtable;
import javax.naming.Context;
import javax.naming.NamingEnumeration;
import javax.naming.directory.SearchControls;
import javax.naming.directory.SearchResult;
import javax.naming.ldap.InitialLdapContext;
import javax.naming.ldap.StartTlsRequest;
import javax.naming.ldap.StartTlsResponse;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * Binds and searches with JNDI, as Java applications do, and prints the values found, one a line.
 * Arguments: ldaps|starttls HOST PORT CA NAME PASSWORD BASE FILTER ATTRIBUTE
 */
public class Search {
    public static void main(String[] arguments) throws Exception {
        String mode = arguments[0], url = arguments[1] + ":" + arguments[2];
        SSLContext trusting = trusting(arguments[3]);
        SSLContext.setDefault(trusting);

        Hashtable<String, String> settings = new Hashtable<>();
        settings.put(Context.INITIAL_CONTEXT_FACTORY, "com.sun.jndi.ldap.LdapCtxFactory");
        settings.put(Context.PROVIDER_URL, (mode.equals("ldaps") ? "ldaps://" : "ldap://") + url);
        settings.put("com.sun.jndi.ldap.connect.timeout", "30000");
        settings.put("com.sun.jndi.ldap.read.timeout", "30000");
        if (mode.equals("ldaps")) {
            authenticate(settings, arguments);
        }
        InitialLdapContext directory = new InitialLdapContext(settings, null);
        if (mode.equals("starttls")) {
            StartTlsResponse tls = (StartTlsResponse) directory.extendedOperation(new StartTlsRequest());
            tls.negotiate(trusting.getSocketFactory());
            Hashtable<String, String> login = new Hashtable<>();
            authenticate(login, arguments);
            for (String key : login.keySet()) {
                directory.addToEnvironment(key, login.get(key));
            }
            directory.reconnect(null);
        }
        SearchControls controls = new SearchControls();
        controls.setSearchScope(SearchControls.SUBTREE_SCOPE);
        controls.setReturningAttributes(new String[] {arguments[8]});
        NamingEnumeration<SearchResult> found = directory.search(arguments[6], arguments[7], controls);
        while (found.hasMore()) {
            System.out.println(found.next().getAttributes().get(arguments[8]).get());
        }
        directory.close();
    }

    private static void authenticate(Hashtable<String, String> settings, String[] arguments) {
        settings.put(Context.SECURITY_AUTHENTICATION, "simple");
        settings.put(Context.SECURITY_PRINCIPAL, arguments[4]);
        settings.put(Context.SECURITY_CREDENTIALS, arguments[5]);
    }

    private static SSLContext trusting(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (InputStream file = new FileInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }
}
